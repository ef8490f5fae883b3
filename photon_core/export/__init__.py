"""A committed model for other tools: checkpoints for transformers, model card, generated text.

Here: exports of a run's model.
Not here: foreign checkpoints that a run starts from (model/foreign.py).
"""
