"""The report of a run: one HTML page without scripts, tables and pictures.

Here: rendering for people.
Not here: gathering the facts (evidence/record.py).
"""
