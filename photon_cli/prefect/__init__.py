"""The Prefect server as seen by the command: embedded, started, remote, with credentials.

Here: addresses, processes and live progress.
Not here: flows and deployments (flows/).
"""
