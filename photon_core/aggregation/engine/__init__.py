"""The streaming pass over all updates: pieces of tensors, threads, sums, resume after interruption.

Here: the execution of a pass.
Not here: the formulas for a piece (means, weights, server_optimizer).
"""
