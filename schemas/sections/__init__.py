"""The sections of the federation file, one per file, and the types of their values.

Here: keys, bounds and defaults.
Not here: rules that need several sections (schemas/federation.py).
"""
