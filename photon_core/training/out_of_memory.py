"""Memory: free bytes, this process's peak, limits, and the detection of out-of-memory errors."""

import os
import resource
from contextlib import suppress
from pathlib import Path

import torch

VMSTAT = Path("/proc/vmstat")
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


def kernel_kills() -> int:
    """The number of processes that the kernel has killed for memory since it started; 0 if unknown."""
    with suppress(OSError):
        for line in VMSTAT.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. torch raises RuntimeError for that, and other processes' errors are ChildFailed."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY)


def forbid_more(device: str, room: int) -> None:
    """Make allocations beyond `room` further bytes fail, before the machine runs out of memory."""
    if room <= 0:
        raise MemoryError
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.mem_get_info()[1]))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (process_status("VmData") + room, resource.RLIM_INFINITY))


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def process_status(name: str) -> int:
    """A number of bytes from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def free_memory(device: str) -> int:
    """Bytes that a process may take now: the GPU's free memory, or the machine's within its control group."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):  # no such file, or no limit
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free
