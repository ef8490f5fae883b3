"""From the updates of a round to the next global model."""
