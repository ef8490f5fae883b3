"""The object store: a local folder, S3 or any fsspec file system, behind one interface.

Here: paths, create-only writes, ranged reads, retries with backoff.
Not here: what the objects mean (run/) and what tensors they hold (tensors/).
"""
