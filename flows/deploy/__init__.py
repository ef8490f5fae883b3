"""Deployments: the catalogue of flows, pools, automations and blocks, and how a server is brought in line with it.

Here: what `photon deploy` registers.
Not here: the flows themselves.
"""
