"""The decoder: shapes, initial parameters, cost, forward pass, and other checkpoint formats.

Here: what follows from the model section of the federation file alone.
Not here: how it is trained (training/) or aggregated (aggregation/). Only decoder and meters import torch.
"""
