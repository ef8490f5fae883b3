"""Prefect tasks: the thin steps of flows, around photon_core.

Here: retries, names, tags and artifacts of a step.
Not here: algorithms (photon_core/) and order (flows/).
"""
