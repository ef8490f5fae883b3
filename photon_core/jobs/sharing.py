"""How a fork server is started: one for a launcher alone, or one beside a worker that many launchers share.

A shared one spares every flow process the seconds that importing composer takes. Its socket lies in a folder that
only this user can enter. Light: the processes that launch import this.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import photon_core
import schemas
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.jobs.scratch import create_scratch
from photon_core.jobs.telemetry import OFF

VARIABLE = "PHOTON_FORK_SERVER"  # the socket of the shared server that a launcher may attach itself to
SOCKET = "socket"
IDENTITY = "identity.json"
BACKLOG = 128
GRACE = 5.0  # seconds for a shared server whose clients are gone to end
ENVIRONMENT = {
    **OFF,
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() must not initialise CUDA
}


def start_process(call: str, descriptors: Sequence[int], log: Path) -> subprocess.Popen[bytes]:
    """A new interpreter that makes this call of photon_core.jobs.server, in a session of its own."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", f"from photon_core.jobs import server; server.{call}"],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
            start_new_session=True,
        )


def heard(control: socket.socket) -> bytes:
    """What a fork server says next; nothing once it is gone."""
    for _ in range(2):
        try:
            return control.recv(1 << 16)
        except ConnectionResetError:  # it ended with something unread: what it said before is still to come
            continue
        except OSError:
            break
    return b""


def last_words(server: subprocess.Popen[bytes] | None, scratch: Path | None) -> str:
    """How a launcher's own fork server ended, and the end of its log."""
    if server is None or scratch is None:
        return ""
    text = ""
    with suppress(subprocess.TimeoutExpired):
        text = f"Exit code {server.wait(GRACE)}. "
    with suppress(OSError):
        text += " ".join((scratch / "server.log").read_text(errors="replace").split("\n")[-4:]).strip()
    return text


@contextmanager
def serve(preload: Sequence[str]) -> Iterator[dict[str, str]]:
    """A fork server that other processes attach to, for the length of the block.

    Args:
        preload: modules that it imports before it serves.

    Yields:
        the environment variable that tells a launcher of it; it may be used at once.
    """
    process, lifeline, environment = _start(preload)
    try:
        yield environment
    finally:
        os.close(lifeline)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:  # a client is still there; its children die with the server
            process.kill()
            process.wait()


def serve_beside(preload: Sequence[str]) -> dict[str, str]:
    """A fork server that lives as long as this process, also when that becomes another program by os.exec.

    When this process ends the server takes no more clients, and ends with the last of those that it has.

    Args:
        preload: modules that it imports before it serves.

    Returns:
        the environment variable that tells a launcher of it; it may be used at once.
    """
    _, lifeline, environment = _start(preload)
    os.set_inheritable(lifeline, True)
    return environment


def _start(preload: Sequence[str]) -> tuple[subprocess.Popen[bytes], int, dict[str, str]]:
    folder, lock = create_scratch()
    (folder / IDENTITY).write_text(json.dumps(identity()))
    reading, lifeline = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with _short_path(folder / SOCKET) as path:
            listener.bind(path)
        listener.listen(BACKLOG)
        call = f"main_shared({listener.fileno()}, {reading}, {lock}, {str(folder)!r}, {list(preload)!r})"
        process = start_process(call, (listener.fileno(), reading, lock), folder / "server.log")
    os.close(reading)
    os.close(lock)
    return process, lifeline, {VARIABLE: str(folder / SOCKET)}


def connect(path: Path) -> socket.socket | None:
    """A connection to the shared server at this socket; None if it is not there, not ours, or of other code."""
    try:
        with _short_path(path) as name:
            if json.loads(Path(name).with_name(IDENTITY).read_text()) != identity():
                return None
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(name)
            except OSError:
                connection.close()
                raise
            return connection
    except (OSError, ValueError):
        return None


def identity() -> str:
    """Hash of the interpreter and of our own code: a server that has imported other code serves nobody here."""
    files = []
    for package in (photon_core, schemas):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            with suppress(FileNotFoundError):  # an editor may be at work
                status = path.stat()
                files.append([str(path), status.st_size, status.st_mtime_ns])
    return sha256_bytes(canonical_json([sys.prefix, sys.version, files]))


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits into the 108 bytes that the kernel allows, by way of its open folder.

    Raises:
        PermissionError: others can enter the folder, or it is another user's.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(f"{path.parent} is not a folder that only this user can enter")
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
