"""photon gc: what goes, in a table, and then it goes. Needs no server, no torch."""

from photon_cli.progress import display
from photon_core.errors import FederationError
from photon_core.formatting import amount
from photon_core.run.garbage import Plan, Rule, look, remove
from photon_core.run.history import ranges
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.sections.values import duration


def collect(federation: Federation, last: int, every: int | None, litter: str, dry_run: bool, quiet: bool) -> None:
    """Say what goes and how much it is; unless it is a dry run, remove it.

    Raises:
        FederationError: `litter` is not a duration.
        PhotonError: the run has no rounds yet.
    """
    try:
        seconds = float(duration(litter))
    except ValueError as error:
        raise FederationError(f"--litter-age '{litter}' {error}") from None
    run = run_of(federation)
    with display(quiet) as show:
        show.activity("gc", f"looking through {run.store.url}")
        found = look(run, Rule(last, every, seconds))
        show.finish("gc")
    _show(found)
    if not found.files:
        print(f"run {federation.run}: nothing to remove")
        return
    total = f"{len(found.files)} files, {amount(found.bytes)}"
    if dry_run:
        print(f"run {federation.run}: would remove {total}. Without --dry-run it is done")
        return
    with display(quiet) as show:
        show.activity("gc", f"removing {total}")
        remove(run, found)
        show.finish("gc")
    print(f"run {federation.run}: removed {total}")


def _show(found: Plan) -> None:
    print(f"kept whole: round {ranges(found.kept)}, and what is not committed yet")
    for t, files in sorted(found.rounds.items()):
        print(f"round {t}: {len(files)} files, {amount(sum(file.bytes for file in files))}")
    for file in found.litter:
        print(f"litter: {file.path}, {amount(file.bytes)}")
