"""What a run records about itself: events, timelines, metrics, experiment trackers, the record that reports read.

Here: facts in a fixed form.
Not here: pages and pictures of them (report/).
"""
