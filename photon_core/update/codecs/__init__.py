"""Codecs: how the change of a tensor becomes bytes, and back. One file a family; `registry` knows them by name.

Here: pure functions on arrays, with error bounds.
Not here: clipping, noise and error feedback (update/post_process.py).
"""
