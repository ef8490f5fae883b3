"""What a site uploads: the change of the model, encoded."""
