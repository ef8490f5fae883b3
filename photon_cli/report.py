"""photon report: one HTML page about a run, from its store. Needs no server and no torch."""

from pathlib import Path

from photon_cli.pages import check_page, write_page
from photon_cli.progress import display
from photon_core.errors import PhotonError
from photon_core.run.run import run_of
from schemas.federation import Federation


def report(federation: Federation, to: Path | None, quiet: bool) -> None:
    """Write the page and print its path.

    Args:
        federation: federation file.
        to: file of the page, which may replace an older page; <run>-report.html in the current folder if None.
        quiet: flag: print nothing.

    Raises:
        FederationError: the page may not be written there.
        PhotonError: the run has no rounds yet.
    """
    target = to or Path(f"{federation.run}-report.html")
    check_page(target, [federation], "--to" if to else "without --to,")
    with display(quiet) as show:
        show.activity("report", "reading the rounds")
        from photon_core.evidence.record import read_record
        from photon_core.report.page import render

        run = run_of(federation)
        record = read_record(run, federation.rounds.count)
        if record.run_manifest is None:
            raise PhotonError(f"run '{run.run}' has no rounds in {run.store.url} yet. Write: photon run")
        show.activity("report", "drawing")
        page = render(record)
        write_page(target, page)
        show.finish("report")
        show.say(
            f"{target}: {len(record.trained)} rounds, {len(page.encode()) / 1e6:.1f} MB; open it in a browser"
        )
