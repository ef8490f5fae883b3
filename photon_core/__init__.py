"""Everything of federated pre-training except the workflow engine: no file here imports Prefect.

The folders are rooms, in storeys: tests/test_house.py holds the order in which they may import each other.
Only errors, hashing, formatting and files are in no room: each is one idea that every room uses.
"""
