"""A site's update: the settings it was made with, clipping and noise, codecs, upload.

Here: from a trained model to a committed update.
Not here: training (training/) and the aggregation of updates (aggregation/).
"""
