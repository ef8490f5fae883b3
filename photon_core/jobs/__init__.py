"""Child processes: a fork server with preloaded modules, a channel for reports, scratch space, signals.

Here: starting, watching and ending a child, independent of what it computes.
Not here: what a child does (training/entry.py names it).
"""
