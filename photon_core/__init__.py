"""Everything of a federation that is true without Prefect: data, training, updates, aggregation, the store."""
