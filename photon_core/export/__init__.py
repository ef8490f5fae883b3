"""A node's model for people and other tools: checkpoints for transformers, model card, text, scores.

Here: which model a node has, and its export, generated text and evaluation.
Not here: foreign checkpoints that a run starts from (model/foreign.py).
"""
