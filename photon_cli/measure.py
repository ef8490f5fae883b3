"""photon join --measure: speed of this machine and its link, as YAML to paste into the federation file."""

import sys
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import yaml

from photon_cli.join import CUDA_SECONDS, require_gpu
from photon_cli.reach import reachable
from photon_core.errors import FederationError
from photon_core.formatting import amount, duration
from photon_core.hardware.measure import Devices, Transfer, in_child, measure_devices, measure_link
from photon_core.hardware.parallelism import check_infra
from photon_core.model.cost import peak_tflops
from schemas.sections.hardware import Hardware, Link
from schemas.view import SiteView

STORE_SECONDS = 120.0  # for 10 s each way, and for importing the object store's client


def measure(view: SiteView, quiet: bool) -> None:
    """Measure devices and link, and print the site's `hardware` and `link`.

    Raises:
        NotReady: the file requires a GPU, and this machine has no usable one.
        ChildFailed: an installed GPU cannot be used, or hangs.
        StoreUnavailable, StoreRefused: the store does not accept the probe.
    """
    _say("measuring the devices", quiet)
    devices = in_child(measure_devices, CUDA_SECONDS, view.local)
    if not devices.gpus:
        require_gpu(view.local)
    run = reachable(view.federation)
    _say(f"measuring the link to {run.store.url}: up to 10 s each way", quiet)
    folder = run.site_folder(0, view.name)
    up, down = in_child(measure_link, STORE_SECONDS, run.store, folder)
    print(declaration(view, devices, up, down))


def declaration(view: SiteView, devices: Devices, up: Transfer, down: Transfer) -> str:
    """A site's `hardware` and `link` in the file's format, how each number was measured, and what follows."""
    hardware, link = _hardware(devices), _link(view.federation.store, up, down)
    text = f"    hardware:\n{hardware}    link:\n{link}"
    found = yaml.safe_load(text)
    here = view.section.model_copy(
        update={"hardware": Hardware.model_validate(found["hardware"]), "link": Link.model_validate(found["link"])}
    )
    try:
        said = f"then it trains with {check_infra(replace(view, section=here))}"
    except FederationError as error:
        said = f"then it is refused: {error}"
    return f"# For the site {view.name}; replace its hardware and link, if any, with these lines\n{text}# {said}"


def _hardware(devices: Devices) -> str:
    """The lines of `hardware`."""
    names = Counter(devices.gpus)
    kinds = ", ".join(f"{count} x {name}" for name, count in names.items())
    peaks = [peak_tflops(name) if devices.dtype == "bfloat16" else None for name in names]
    known = [peak for peak in peaks if peak is not None]
    product = f"a product of {devices.size} x {devices.size} {devices.dtype} matrices reached"
    reached = _plain(devices.reached / 1e12)
    if len(known) == len(peaks) and known:
        tflops = f"{_plain(min(known))}  # the vendor's peak; {product} {reached}"
    else:
        tflops = f"{reached}  # {product} this; the vendor's peak is unknown"
    several = len(devices.gpus) > 1
    kinds = kinds or f"all {devices.processors} processors together; no GPU is used"
    memory = "in 10^9 bytes, of the smallest device" if several else "in 10^9 bytes"
    return "".join(
        f"      {line}\n"
        for line in (
            "nodes: 1  # each separate machine is its own site",
            f"devices: {len(devices.gpus) or 1}  # {kinds}",
            f"tflops: {tflops}" + (", on the slowest" if several else ""),
            f"memory_gb: {_plain(devices.memory // 10**8 / 10)}  # {memory}",
        )
    )


def _link(store: str, up: Transfer, down: Transfer) -> str:
    """The lines of `link`."""
    to = store if "://" in store else f"{store}, a folder: includes its file system's cache in memory"
    return (
        f"      up: {_plain(up.gigabits)}  # Gbit/s: {amount(up.size)} in {duration(up.seconds)} to {to}\n"
        f"      down: {_plain(down.gigabits)}  # Gbit/s: {amount(down.size)} back in {duration(down.seconds)}\n"
    )


def _plain(number: float) -> str:
    """A number with four digits and no exponent, which YAML would read as text."""
    return f"{Decimal(f'{number:.4g}'):f}"


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
