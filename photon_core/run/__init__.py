"""A run in the store: paths and manifests, opening, updates, evaluations, history, rollback, garbage collection.

Here: reading and committing the objects of a run, which are facts.
Not here: aggregation of updates (aggregation/) and rendering for people (report/).
"""
