"""Prediction before training: memory, bytes, seconds and tokens of a round, from the file and from past rounds.

Here: the pure functions behind `photon plan`.
Not here: the choices that training makes itself (hardware/).
"""
