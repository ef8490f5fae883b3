"""What a site's devices and its link to the store do, measured: for `photon join --measure`.

Each in a child process (`in_child`): CUDA must not be touched in the caller's, and what hangs can be ended.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from photon_core.errors import ChildFailed, CorruptFile, StoreRefused, StoreUnavailable
from photon_core.formatting import amount
from photon_core.jobs.child import portable
from photon_core.store.interface import probe_name
from photon_core.store.store import Store
from schemas.sections.local import Local
from schemas.server_errors import told

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

GPU_SIZE, CPU_SIZE = 8192, 2048  # rows and columns of the matrices
PRODUCT_SECONDS = 1.0  # of products, after the first ones
LINK_SECONDS = 10.0  # each way, at most
FIRST, MOST = 2**20, 2**27  # bytes of a probe
ENOUGH_SECONDS = 1.0  # a probe that took so long is long enough
GRACE = 5.0  # s that a child has to end by itself


@dataclass(frozen=True)
class Devices:
    """What trains on this machine.

    Args:
        gpus: their names; none where the processors train.
        memory: bytes of the smallest GPU, or of the machine that the processors may use.
        dtype: of the matrices that were multiplied, as local.precision has it: bfloat16 or float32.
        size: their rows and columns.
        reached: FLOP/s of their product, on the slowest GPU or on all processors together.
        processors: that this process may use.
    """

    gpus: tuple[str, ...]
    memory: int
    dtype: str
    size: int
    reached: float
    processors: int


@dataclass(frozen=True)
class Transfer:
    """So many bytes in so many seconds."""

    size: int
    seconds: float

    @property
    def gigabits(self) -> float:
        """10^9 bits a second."""
        return 8e-9 * self.size / self.seconds


def in_child(function: Callable[..., T], seconds: float, *args: Any) -> T:
    """What the function returns in a fresh process; it and its arguments can be pickled. From the main thread.

    Raises:
        PhotonError: as the function raised it.
        ChildFailed: it raised something else, took more than so many seconds, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(there, function, args), daemon=True)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it while it only imports
    child.start()
    signal.signal(signal.SIGINT, interrupt)
    there.close()
    try:
        if not here.poll(seconds):
            child.kill()
            raise ChildFailed(
                f"{function.__name__} took more than {seconds:.0f} s: a driver or a server hangs; see to it, and "
                "measure again, or write hardware and link by hand"
            )
        kind, value = here.recv()
    except EOFError:
        child.join(GRACE)
        raise ChildFailed(f"{function.__name__} was ended (exit code {child.exitcode})") from None
    finally:
        child.join(GRACE)
        child.kill()
        here.close()
    if kind == "error":
        raise value
    result: T = value
    return result


def _answer(channel: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        channel.send(("result", function(*args)))
    except BaseException as error:
        with suppress(OSError):
            channel.send(("error", portable(error)))
    channel.close()
    os._exit(0)  # what a hanging library has started waits for nobody


def measure_devices(local: Local) -> Devices:
    """The devices that the file's local.device means here, and what a matrix product reaches on them.

    Raises:
        ChildFailed: a GPU is there, and cannot be used.
    """
    import torch

    count = torch.cuda.device_count() if local.device != "cpu" and torch.cuda.is_available() else 0
    processors = len(os.sched_getaffinity(0))
    if not count:
        torch.set_num_threads(processors)
        reached = _product("cpu", torch.float32, CPU_SIZE)
        return Devices((), _machine_memory(), "float32", CPU_SIZE, reached, processors)
    dtype = torch.float32 if local.precision == "fp32" else torch.bfloat16
    known, rates = [torch.cuda.get_device_properties(number) for number in range(count)], []
    for number, gpu in enumerate(known):
        try:
            rates.append(_product(f"cuda:{number}", dtype, GPU_SIZE))
        except RuntimeError as error:  # torch's own, for too little memory as for a device that is not free
            raise ChildFailed(
                f"GPU {number} ({gpu.name}) cannot multiply two matrices of {GPU_SIZE} x {GPU_SIZE} "
                f"({str(error).splitlines()[0]}); look at nvidia-smi for what else runs on it, and measure again"
            ) from None
    names, memory = tuple(gpu.name for gpu in known), min(gpu.total_memory for gpu in known)
    return Devices(names, memory, str(dtype).removeprefix("torch."), GPU_SIZE, min(rates), processors)


def _product(device: str, dtype: "torch.dtype", size: int) -> float:
    """FLOP/s of the fastest of several products of two matrices of this size, 2 n^3 operations each."""
    import torch

    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out, fastest, end = torch.empty_like(left), float("inf"), None
    while end is None or time.monotonic() < end:
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        if device != "cpu":
            torch.cuda.synchronize(device)
        if end is not None:
            fastest = min(fastest, time.perf_counter() - started)
        end = end or time.monotonic() + PRODUCT_SECONDS  # the first one pays for start-up, and does not count
    return 2.0 * size**3 / fastest


def _machine_memory() -> int:
    """Bytes of the machine, or of the control group that this process is in, if that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such file, or no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def measure_link(store: Store, folder: str) -> tuple[Transfer, Transfer]:
    """Write a probe and read it back; larger ones while that goes fast. Nothing of it stays.

    Args:
        store: where.
        folder: of the probes, in which the site may write.

    Returns:
        up and down.

    Raises:
        StoreUnavailable: not even the first probe went through in time.
        StoreRefused: the store does not let us.
        CorruptFile: what came back is shorter.
    """
    paths: list[str] = []
    try:
        path, up = _write(store, folder, paths)
        return up, _read(store, path, up.size)
    except OSError as error:
        raise StoreRefused(
            f"{store.url} cannot be written and read ({told(error)}); correct its address, or who may write there"
        ) from None
    finally:
        for path in paths:
            with suppress(Exception):  # a site may be allowed to write and not to remove: then it is litter
                store.discard(path)


def _write(store: Store, folder: str, paths: list[str]) -> tuple[str, Transfer]:
    """The last probe that was written in time, and its path; `paths` get all that were begun."""
    block, size, found = os.urandom(FIRST), FIRST, None
    with _at_most(LINK_SECONDS):
        while found is None or (found[1].seconds < ENOUGH_SECONDS and found[1].size < MOST):
            paths.append(f"{folder}/{probe_name()}")
            started = time.perf_counter()
            with store.open_write(paths[-1]) as file:
                for _ in range(size // FIRST):
                    file.write(block)
            found = paths[-1], Transfer(size, time.perf_counter() - started)
            size = min(MOST, size * min(16, max(2, int(2 * ENOUGH_SECONDS / found[1].seconds))))
    if found is None:
        raise _too_slow(store, "written", "up")
    return found


def _read(store: Store, path: str, size: int) -> Transfer:
    """As much of the probe as came back in time."""
    done, started = 0, time.perf_counter()
    with _at_most(LINK_SECONDS), store.open_read(path) as file:
        while block := file.read(FIRST):
            done += len(block)
        if done != size:
            raise CorruptFile(f"{store.locate(path)} was written with {size} bytes, and {done} came back")
    if not done:
        raise _too_slow(store, "read back", "down")
    return Transfer(done, time.perf_counter() - started)


def _too_slow(store: Store, done: str, key: str) -> StoreUnavailable:
    least = FIRST * 8e-9 / LINK_SECONDS
    return StoreUnavailable(
        f"{store.url}: {amount(FIRST)} were not {done} in {LINK_SECONDS:.0f} s; the link has less than "
        f"{least:.2g} Gbit/s, or the store is busy: measure again, or write link: {{{key}: ...}} by hand"
    )


class _TimeUp(BaseException):
    """No Exception, so that nobody on the way takes it for an error that trying again could mend."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """The block ends after so many seconds, wherever it is; in a process's main thread only."""

    def end(*_: object) -> None:
        raise _TimeUp

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with suppress(_TimeUp):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
