"""The federation file and the manifests as pydantic models. Nothing here imports photon_core.

Here: names, types, bounds, defaults and error messages.
Not here: anything that needs the disk, the store or torch.
"""
