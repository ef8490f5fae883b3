"""Pages that a command writes to a file of the user's choice. Only an older page of Photon is overwritten."""

from collections.abc import Iterable
from pathlib import Path

from photon_core.errors import FederationError
from photon_core.files import make_folder, write_whole
from schemas.federation import Federation
from schemas.reading.places import local_path
from schemas.sections.overlap import check_target

HEAD = 4096  # first bytes of a page, which contain one of these marks
OURS = (
    b"default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    b"<title>Plan of ",
    b"<dc:title>photon plan",
    b"node,kind,root_round,round,",  # the curves beside a page
)


def check_page(target: Path, federations: Iterable[Federation], option: str = "--to") -> None:
    """Refuse, before any work, a target where no page may be written.

    Raises:
        FederationError: the target overlaps with paths of the federation files, is a folder, or is a file that is
            not a page of Photon.
    """
    for federation in federations:
        check_target(federation, option, target)
    if target.is_dir():
        raise FederationError(f"{option} {target}: is a folder; write the name of a file")
    if target.is_file():
        with target.open("rb") as file:
            head = file.read(HEAD)
        if head and not any(mark in head for mark in OURS):
            raise FederationError(
                f"{option} {target}: is a file that photon did not write, so it is kept; write another name"
            )


def check_beside(target: Path, runs: Iterable[str]) -> None:
    """Refuse a page inside the store of one of these runs, <store>/<run>.

    Raises:
        FederationError: the page is in the store of the named run.
    """
    for run in runs:
        store = local_path(run)
        if store is not None and target.resolve().is_relative_to(store.resolve().parent):
            raise FederationError(f"--to {target}: is inside the store of {run}; write a path outside it")


def write_page(target: Path, content: str) -> None:
    """Write a page, whole or not at all. A device such as /dev/stdout gets it directly."""
    make_folder(target.parent)
    if target.exists() and not target.is_file():
        target.write_text(content, "utf-8")
    else:
        write_whole(target, content.encode())
