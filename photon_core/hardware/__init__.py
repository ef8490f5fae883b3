"""A site's hardware: devices, parallelism (DDP or FSDP), exchange time, measurements.

Here: what a site can compute, and how its devices share a step.
Not here: the processes that train (training/parallel/) and predictions (plan/).
"""
