"""Measuring a site's devices and its link to the store, for `photon join --measure`.

Each measurement runs in a child process (`in_child`): the caller's process must not touch CUDA, and a child that
hangs can be killed.
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
PRODUCT_SECONDS = 1.0  # s of products, after the first one
LINK_SECONDS = 10.0  # s each way, at most
FIRST, MOST = 2**20, 2**27  # bytes of the first and of the largest probe
ENOUGH_SECONDS = 1.0  # s of a probe that is large enough
GRACE = 5.0  # s that a child has to end by itself


@dataclass(frozen=True)
class Devices:
    """The devices of this machine that train.

    Args:
        gpus: names of the GPUs; none where the processors train.
        memory: bytes of the smallest GPU, or of the memory that the processors may use.
        dtype: dtype of the multiplied matrices, by local.precision: bfloat16 or float32.
        size: number of rows and columns of the matrices.
        reached: FLOP/s of the product, on the slowest GPU or on all processors together.
        processors: number of processors that this process may use.
    """

    gpus: tuple[str, ...]
    memory: int
    dtype: str
    size: int
    reached: float
    processors: int


@dataclass(frozen=True)
class Transfer:
    """The size of a transfer in bytes, and its duration in seconds."""

    size: int
    seconds: float

    @property
    def gigabits(self) -> float:
        """10^9 bits a second."""
        return 8e-9 * self.size / self.seconds


def in_child(function: Callable[..., T], seconds: float, *args: Any) -> T:
    """Call the function in a new process and return its result. To be called from the main thread.

    Args:
        function: picklable function.
        seconds: time limit.
        args: picklable arguments.

    Raises:
        PhotonError: the function raised it.
        ChildFailed: the function raised another error, exceeded the time limit, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(there, function, args), daemon=True)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the child while it imports
    child.start()
    signal.signal(signal.SIGINT, interrupt)
    there.close()
    try:
        if not here.poll(seconds):
            child.kill()
            raise ChildFailed(
                f"{function.__name__} took more than {seconds:.0f} s: a driver or a server hangs; fix it and "
                "measure again, or write hardware and link without measuring"
            )
        kind, value = here.recv()
    except EOFError:
        child.join(GRACE)
        raise ChildFailed(f"{function.__name__} was killed or ended (exit code {child.exitcode})") from None
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
    os._exit(0)  # without waiting for threads of a library that hangs


def measure_devices(local: Local) -> Devices:
    """The devices that local.device selects on this machine, and the speed of a matrix product on them.

    Raises:
        ChildFailed: an installed GPU cannot be used.
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
        except RuntimeError as error:  # torch raises it both for too little memory and for a device in use
            raise ChildFailed(
                f"GPU {number} ({gpu.name}) cannot multiply two matrices of {GPU_SIZE} x {GPU_SIZE} "
                f"({str(error).splitlines()[0]}); look at nvidia-smi for other programs on it, and measure again"
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
        end = end or time.monotonic() + PRODUCT_SECONDS  # the first product includes start-up and does not count
    return 2.0 * size**3 / fastest


def _machine_memory() -> int:
    """Bytes of the machine's memory, or of this process's control group if that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such file, or no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def measure_link(store: Store, folder: str) -> tuple[Transfer, Transfer]:
    """Write a probe and read it back, with larger probes while the link is fast. All probes are removed.

    Args:
        store: store to probe.
        folder: probe folder, in which the site may write.

    Returns:
        The transfers up and down.

    Raises:
        StoreUnavailable: not even the first probe was transferred in time.
        StoreRefused: the store does not permit it.
        CorruptFile: the probe that was read back has another size.
    """
    paths: list[str] = []
    try:
        path, up = _write(store, folder, paths)
        return up, _read(store, path, up.size)
    except OSError as error:
        raise StoreRefused(
            f"{store.url} cannot be written and read ({told(error)}); correct its address or its permissions"
        ) from None
    finally:
        for path in paths:
            with suppress(Exception):  # a site may have no permission to remove: `photon gc` removes the file
                store.discard(path)


def _write(store: Store, folder: str, paths: list[str]) -> tuple[str, Transfer]:
    """The path of the last probe that was written in time, and its transfer. All started probes go to `paths`."""
    block, size, last = os.urandom(FIRST), FIRST, None
    with _at_most(LINK_SECONDS):
        while last is None or (last[1].seconds < ENOUGH_SECONDS and last[1].size < MOST):
            paths.append(f"{folder}/{probe_name()}")
            started = time.perf_counter()
            with store.open_write(paths[-1]) as file:
                for _ in range(size // FIRST):
                    file.write(block)
            last = paths[-1], Transfer(size, time.perf_counter() - started)
            size = min(MOST, size * min(16, max(2, int(2 * ENOUGH_SECONDS / last[1].seconds))))
    if last is None:
        raise _too_slow(store, "written", "up")
    return last


def _read(store: Store, path: str, size: int) -> Transfer:
    """The transfer of the part of the probe that was read back in time."""
    done, started = 0, time.perf_counter()
    with _at_most(LINK_SECONDS), store.open_read(path) as file:
        while block := file.read(FIRST):
            done += len(block)
        if done != size:
            raise CorruptFile(f"{store.locate(path)} was written with {size} bytes, but {done} were read back")
    if not done:
        raise _too_slow(store, "read back", "down")
    return Transfer(done, time.perf_counter() - started)


def _too_slow(store: Store, done: str, key: str) -> StoreUnavailable:
    least = FIRST * 8e-9 / LINK_SECONDS
    return StoreUnavailable(
        f"{store.url}: {amount(FIRST)} were not {done} in {LINK_SECONDS:.0f} s; the link has less than "
        f"{least:.2g} Gbit/s, or the store is busy: measure again, or write link: {{{key}: ...}} without measuring"
    )


class _TimeUp(BaseException):
    """A BaseException, so that no retry on the way catches it as a transient error."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End the block after `seconds`, at any point. In a process's main thread only."""

    def end(*_: object) -> None:
        raise _TimeUp

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with suppress(_TimeUp):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
