"""A site's update: settings it was made with, clipping and noise, codecs, upload.

Here: from a trained model to a committed update.
Not here: training (training/) and what the coordinator makes of updates (aggregation/).
"""
