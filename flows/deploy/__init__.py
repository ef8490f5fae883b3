"""Deployments: the catalogue of flows, pools, automations and blocks, and bringing a server in line with it.

Here: what `photon deploy` registers.
Not here: the flows themselves.
"""
