"""Starting a fork server: for one launcher alone, or beside a worker and shared by many launchers.

A shared server saves every flow process the seconds that importing composer takes. Its socket is in a folder that
only this user can enter. Imports stay light, because launching processes import this module.
"""

import json
import os
import signal
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

VARIABLE = "PHOTON_FORK_SERVER"  # socket of a shared server that launchers may use
SOCKET = "socket"
IDENTITY = "identity.json"
BACKLOG = 128
GRACE = 5.0  # s that a shared server has to end after its last client
ENVIRONMENT = {
    **OFF,
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() must not initialise CUDA
}


def start_process(
    module: str, call: str, descriptors: Sequence[int], log: Path, session: bool = True
) -> subprocess.Popen[bytes]:
    """A new interpreter that makes this call of a module of photon_core.jobs.

    Args:
        module, call: name of the module, and the call of one of its functions.
        descriptors: descriptors that it inherits.
        log: file for its output.
        session: flag: it starts a new session.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", f"from photon_core.jobs import {module}; {module}.{call}"],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
            start_new_session=session,
        )


def next_message(control: socket.socket) -> bytes:
    """The fork server's next message; empty if the server is gone."""
    for _ in range(2):
        try:
            return control.recv(1 << 16)
        except ConnectionResetError:  # it ended with unread input; its last messages still follow
            continue
        except OSError:
            break
    return b""


def exit_report(server: subprocess.Popen[bytes] | None, scratch: Path | None) -> str:
    """The exit code of a launcher's own fork server, and the end of its log."""
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
    """A shared fork server, for the length of the block.

    Args:
        preload: modules that the server imports before it serves.

    Yields:
        The environment variable by which launchers find the server. It may be used at once.
    """
    process, lifeline, environment = _start(preload)
    try:
        yield environment
    finally:
        os.close(lifeline)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:  # a client still runs; its children die with the server
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def serve_beside(preload: Sequence[str]) -> dict[str, str]:
    """A shared fork server that runs as long as this process, even if os.exec makes it another program.

    When this process ends, the server accepts no more clients, and ends with its last one.

    Args:
        preload: modules that the server imports before it serves.

    Returns:
        The environment variable by which launchers find the server. It may be used at once.
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
        call = f"main({listener.fileno()}, {reading}, {lock}, {str(folder)!r}, {list(preload)!r})"
        process = start_process("keeper", call, (listener.fileno(), reading, lock), folder / "keeper.log")
    os.close(reading)
    os.close(lock)
    return process, lifeline, {VARIABLE: str(folder / SOCKET)}


def connect(path: Path) -> socket.socket | None:
    """A connection to the shared server at this socket; None if it is gone, another user's, or runs other code."""
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
    """Hash of the interpreter and of Photon's code. A server that has imported other code must not be used."""
    files = []
    for package in (photon_core, schemas):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            with suppress(FileNotFoundError):  # an editor may be replacing it
                status = path.stat()
                files.append([str(path), status.st_size, status.st_mtime_ns])
    return sha256_bytes(canonical_json([sys.prefix, sys.version, files]))


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name for a socket within the 108 bytes that the kernel allows: a path through its open folder.

    Raises:
        PermissionError: other users can enter the folder, or it is another user's.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(f"other users can enter {path.parent}; it must be this user's, with mode 0700")
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
