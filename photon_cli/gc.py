"""photon gc: list what can be removed, then remove it. Needs neither server nor torch."""

from photon_cli.progress import display
from photon_core.errors import FederationError
from photon_core.formatting import amount
from photon_core.run.garbage import Plan, Rule, look, remove
from photon_core.run.history import ranges
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.sections.values import duration


def collect(
    federation: Federation, last: int, every: int | None, orphan_age: str, dry_run: bool, quiet: bool
) -> None:
    """List what can be removed and its size. Remove it, unless this is a dry run.

    Raises:
        FederationError: `orphan_age` is not a duration.
        PhotonError: the run has no rounds yet.
    """
    try:
        seconds = float(duration(orphan_age))
    except ValueError as error:
        raise FederationError(f"--orphan-age '{orphan_age}' {error}") from None
    run = run_of(federation)
    with display(quiet) as show:
        show.activity("gc", f"listing {run.store.url}")
        found = look(run, Rule(last, every, seconds))
        show.finish("gc")
    _show(found)
    if not found.files:
        print(f"run {federation.run}: nothing to remove")
        return
    total = f"{len(found.files)} files, {amount(found.bytes)}"
    if dry_run:
        print(f"run {federation.run}: would remove {total}. To remove it, write the command without --dry-run")
        return
    with display(quiet) as show:
        show.activity("gc", f"removing {total}")
        remove(run, found)
        show.finish("gc")
    print(f"run {federation.run}: removed {total}")


def _show(found: Plan) -> None:
    print(f"kept whole: round {ranges(found.kept)}, and everything that is not committed yet")
    for t, files in sorted(found.rounds.items()):
        print(f"round {t}: {len(files)} files, {amount(sum(file.bytes for file in files))}")
    for file in found.orphans:
        print(f"unreferenced: {file.path}, {amount(file.bytes)}")
