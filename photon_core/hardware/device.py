"""The device that a site trains on. Child processes only: it may touch CUDA."""

from photon_core.errors import FederationError
from photon_core.hardware.parallelism import check_gpus, check_processors
from schemas.sections.local import Local
from schemas.view import SiteView


def choose_device(local: Local) -> str:
    """'cpu' or 'cuda': what the federation file requests and the machine has.

    Raises:
        FederationError: the file requests a GPU, or a precision that needs one, and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if local.device == "cuda" and not available:
        raise FederationError("local.device is cuda, but this machine has no usable GPU; write auto or cpu")
    device = "cuda" if available and local.device != "cpu" else "cpu"
    if device == "cpu" and local.precision != "fp32":
        raise FederationError(
            f"local.precision is {local.precision}, which needs a GPU, but this site trains on processors; "
            "write fp32"
        )
    return device


def check_devices(view: SiteView, needed: int) -> None:
    """Refuse to train on more GPUs than this machine has. Ranks may share processors, but not with FSDP.

    Raises:
        FederationError: the devices do not suffice.
    """
    import torch

    if choose_device(view.local) == "cpu":
        check_processors(view)
    else:
        check_gpus(view.name, needed, torch.cuda.device_count())
