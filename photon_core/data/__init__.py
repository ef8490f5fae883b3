"""A site's text: documents, checks, tokens, MDS shards, the training stream and held-out sequences.

Here: what happens to text, which never leaves the site.
Not here: the run in the store (run/) and the loop that reads the stream (training/).
"""
