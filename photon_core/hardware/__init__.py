"""A site's hardware: devices, parallelism (DDP or FSDP), exchange time, measurements.

Here: what a site can do, and how its devices share a step.
Not here: processes that do it (training/parallel/) and predictions (plan/).
"""
