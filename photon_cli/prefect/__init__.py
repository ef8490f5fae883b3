"""The command's side of the Prefect server: embedded, started, remote, with credentials.

Here: addresses, processes and current progress.
Not here: flows and deployments (flows/).
"""
