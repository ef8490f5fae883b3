"""The streaming pass over all updates: pieces of tensors, threads, sums, resume after interruption.

Here: how a pass runs.
Not here: what is computed for a piece (means, weights, server_optimizer).
"""
