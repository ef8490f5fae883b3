"""A committed model for other tools: checkpoints for transformers, model card, generated text.

Here: what leaves the run for use.
Not here: reading foreign checkpoints as a start (model/foreign.py).
"""
