"""Other systems for comparison, each in its own environment."""
