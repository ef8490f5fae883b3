"""Which device a site trains on, and what it can do. Child processes only: it may touch CUDA."""

from photon_core.errors import FederationError
from photon_core.hardware.parallelism import check_gpus, check_processors
from schemas.sections.local import Local
from schemas.view import SiteView


def choose_device(local: Local) -> str:
    """'cpu' or 'cuda', as the federation file says and the machine allows.

    Raises:
        FederationError: the file wants a GPU, or a precision that needs one, and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if local.device == "cuda" and not available:
        raise FederationError("local.device is cuda, but this machine shows no CUDA device; write auto or cpu")
    device = "cuda" if available and local.device != "cpu" else "cpu"
    if device == "cpu" and local.precision != "fp32":
        raise FederationError(f"local.precision is {local.precision}, which needs a GPU here; write fp32")
    return device


def check_devices(view: SiteView, wanted: int) -> None:
    """Refuse to train on more GPUs than this machine has; processors may be shared, but not with FSDP."""
    import torch

    if choose_device(view.local) == "cpu":
        check_processors(view)
    else:
        check_gpus(view.name, wanted, torch.cuda.device_count())
