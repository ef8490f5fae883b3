"""Sites with workers of their own: asking for a flow run, watching it, waiting for all.

Here: everything that talks to the Prefect server about other flow runs.
Not here: the steps that such a flow run does (tasks/site.py).
"""
