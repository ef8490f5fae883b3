"""The federation file and the manifests as pydantic models; nothing here imports photon_core.

Here: names, types, bounds, defaults and errors in words.
Not here: what needs the disk, the store or torch.
"""
