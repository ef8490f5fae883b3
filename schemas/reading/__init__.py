"""Reading a federation file: YAML with line numbers, paths resolved, errors with a remedy.

Here: from text to a valid Federation or one clear error.
Not here: the meaning of the keys (schemas/sections/).
"""
