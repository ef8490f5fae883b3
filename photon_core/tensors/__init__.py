"""Safetensors files in a store: format, shards, prefetching reader, streaming writer, numeric kernels.

Here: bytes and dtypes, checked before use.
Not here: which tensors a model has (model/) and how updates encode them (update/codecs/).
"""
