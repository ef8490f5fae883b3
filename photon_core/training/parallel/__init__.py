"""Several devices at one site: ranks under a launcher (DDP, FSDP), and nodes that train independently.

Here: processes of one site and how they exchange.
Not here: the choice between them (hardware/parallelism.py).
"""
