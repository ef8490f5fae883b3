"""A PostgreSQL of the tests' own: Debian's programs, an ordinary user, a folder, a free port of loopback."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from photon_cli.prefect.embedded import hold_port

DEBIAN = Path("/usr/lib/postgresql")  # a folder for each version; Debian keeps the server's programs off the PATH


def programs() -> Path:
    """The folder of the newest `postgres`; the test is skipped where there is none."""
    found = shutil.which("postgres")
    folders = sorted(DEBIAN.glob("*/bin"), key=lambda folder: float(folder.parent.name))
    if not found and not folders:
        pytest.skip("PostgreSQL is not installed: sudo make postgres")
    return Path(found).resolve().parent if found else folders[-1]


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """Runs one. Yields the settings with which `psql` and its like reach it as its administrator."""
    binaries, who = programs(), _ordinary_user()
    folder = Path(tempfile.mkdtemp(prefix="photon-postgres-"))  # a socket's path is at most 107 bytes
    if who:
        os.chown(folder, who["user"], who["group"])
    with hold_port() as held:
        port = str(held.getsockname()[1])
        log = (folder / "log").open("wb")
        options: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "cwd": folder, **who}
        initdb = ["--auth-local=trust", "--auth-host=scram-sha-256", "--username=postgres", "--encoding=UTF8"]
        subprocess.run([binaries / "initdb", "--pgdata", folder / "data", *initdb], check=True, **options)
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-p", port]
        server = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", "-c", "fsync=off", *settings], **options
        )
        try:
            yield {"PGHOST": str(folder), "PGPORT": port, "PGUSER": "postgres"}
        finally:
            server.send_signal(signal.SIGINT)  # "fast": open connections are ended
            server.wait(60)
            log.close()
            shutil.rmtree(folder)


def _ordinary_user() -> dict[str, Any]:
    """Whom subprocess shall run PostgreSQL as: it refuses root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
