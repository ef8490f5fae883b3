"""Inner optimizers: AdamW, Muon, the learning-rate schedule and gradient clipping.

Here: one local step's arithmetic.
Not here: the server's optimizer (aggregation/server_optimizer.py).
"""
