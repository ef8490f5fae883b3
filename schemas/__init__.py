"""What users write and what the store keeps, as Pydantic models: the federation file and the manifests."""
