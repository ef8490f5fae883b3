"""Which step happens when: Prefect flows, each short enough to read as pseudocode."""
