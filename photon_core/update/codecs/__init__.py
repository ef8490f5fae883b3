"""Codecs: the change of a tensor as bytes, and back. One file per family; `registry` finds a codec by its name.

Here: pure functions on arrays, with error bounds.
Not here: clipping, noise and error feedback (update/post_process.py).
"""
