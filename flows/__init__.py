"""Prefect flows, one per file. To understand a round, read federated_round.py.

Here: order, waiting and outcome.
Not here: work (tasks/ and below) and deployments (flows/deploy/).
"""
