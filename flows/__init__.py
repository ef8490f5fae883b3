"""Prefect flows, one file each: a round is understood by reading federated_round.py.

Here: order, waiting and outcome.
Not here: work (tasks/ and below) and deployments (flows/deploy/).
"""
