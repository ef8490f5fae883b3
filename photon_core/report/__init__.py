"""The report of a run: one HTML page without scripts, tables and pictures.

Here: the rendering for people.
Not here: the collection of the facts (evidence/record.py).
"""
