"""The command line, one file per command. `main` only parses.

Here: arguments, terminals and messages.
Not here: anything that a flow could also need.
"""
