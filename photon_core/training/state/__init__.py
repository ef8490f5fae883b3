"""A site's private state: finished training, local checkpoint, resume after interruption.

Here: what is kept on the site's disk between attempts and rounds.
Not here: what is uploaded (update/).
"""
