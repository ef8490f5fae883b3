"""Everything of federated pre-training but the workflow engine: no file here imports Prefect.

The folders are rooms, in storeys: tests/test_repository.py holds the order in which they may import each other.
Only errors, hashing, formatting and files stand loose: each is one idea that every room uses.
"""
