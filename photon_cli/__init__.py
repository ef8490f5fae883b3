"""The command line, one file a command; `main` only parses.

Here: arguments, terminals and messages.
Not here: anything that a flow could need, too.
"""
