"""A site's private state: finished training, local checkpoint, resume after interruption.

Here: state on the site's disk between attempts and rounds.
Not here: uploads (update/).
"""
