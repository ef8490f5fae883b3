"""Local training in child processes: Composer's trainer, local steps, evaluation, micro-batch search.

Here: everything that imports torch and Composer.
Not here: starting the children (jobs/) and what leaves the site (update/).
"""
