"""Sites with their own workers: request a flow run, watch it, wait for all.

Here: every call to the Prefect server about other flow runs.
Not here: the steps of such a flow run (tasks/site.py).
"""
