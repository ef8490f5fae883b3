"""What a federation will take, before it is run: pure functions of its file and of the manifests so far."""
