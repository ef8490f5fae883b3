"""Several devices at one site: ranks under a launcher (DDP, FSDP), and nodes that train independently.

Here: the processes of one site, and their exchange.
Not here: the choice of the parallelism (hardware/parallelism.py).
"""
