"""Text to token shards, their checks, and the merged stream that a site trains on."""
