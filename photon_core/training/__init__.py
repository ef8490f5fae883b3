"""Local training in child processes: Composer's trainer, local steps, evaluation, micro-batch search.

Here: everything that imports torch and Composer.
Not here: starting child processes (jobs/) and uploading updates (update/).
"""
