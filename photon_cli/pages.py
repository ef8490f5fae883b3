"""Pages that a command writes where the user says: over an older one of ours, never over anything else."""

from collections.abc import Iterable
from pathlib import Path

from photon_core.errors import FederationError
from photon_core.files import make_folder, write_whole
from schemas.federation import Federation
from schemas.reading.places import local_path
from schemas.sections.overlap import check_target

HEAD = 4096  # bytes of a page, in which one of these stands
OURS = (
    b"default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    b"<title>Plan of ",
    b"<dc:title>photon plan",
)


def check_page(target: Path, federations: Iterable[Federation], option: str = "--to") -> None:
    """Refuse, before any work, a place where a page may not be written.

    Raises:
        FederationError: it is in the way of what the federation files name, a folder, or a file that is no page of
            ours.
    """
    for federation in federations:
        check_target(federation, option, target)
    if target.is_dir():
        raise FederationError(f"{option} {target}: is a folder; write the name of a file in it")
    if target.is_file():
        with target.open("rb") as file:
            head = file.read(HEAD)
        if head and not any(mark in head for mark in OURS):
            raise FederationError(
                f"{option} {target}: is a file that photon did not write, and it stays; write another name"
            )


def check_beside(target: Path, runs: Iterable[str]) -> None:
    """Refuse a page in the folder of one of these runs, <store>/<run>.

    Raises:
        FederationError: naming it.
    """
    for run in runs:
        store = local_path(run)
        if store is not None and target.resolve().is_relative_to(store.resolve().parent):
            raise FederationError(f"--to {target}: lies in the store of {run}; write another place")


def write_page(target: Path, content: str) -> None:
    """Put a page there, whole or not at all; a device, such as /dev/stdout, gets it as it is."""
    make_folder(target.parent)
    if target.exists() and not target.is_file():
        target.write_text(content, "utf-8")
    else:
        write_whole(target, content.encode())
