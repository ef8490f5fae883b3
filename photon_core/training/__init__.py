"""The model, and how a site trains it for one round."""
