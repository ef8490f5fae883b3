"""photon report: an HTML page about a run, from its store; curves of a tree. Needs no server and no torch."""

from pathlib import Path

from photon_cli.pages import check_page, write_page
from photon_cli.progress import display
from photon_core.errors import FederationError, PhotonError
from photon_core.evidence.nodes import Problems
from photon_core.run.run import run_of
from schemas.reading.world import World

CURVES = ".csv"


def report(world: World, problems: Problems, to: Path | None, quiet: bool) -> None:
    """Write the page and print its path. Of a tree, write its nodes' curves beside it.

    Args:
        world: the federation, and those below it.
        problems: federations below it that are known to be unreadable.
        to: file of the page, which may replace an older page; <run>-report.html in the current folder if None.
        quiet: flag: print nothing.

    Raises:
        FederationError: the page may not be written there.
        PhotonError: the run has no rounds yet.
    """
    federation = world.federation
    target = to or Path(f"{federation.run}-report.html")
    curves = _curves(target) if is_tree(world) else None
    for file in (target, curves):
        if file is not None:
            check_page(file, [node.federation for _, node in world.nodes()], "--to" if to else "without --to,")
    with display(quiet) as show:
        show.activity("report", "reading the rounds")
        from photon_core.evidence.record import read_record
        from photon_core.evidence.tree import read_tree
        from photon_core.report.node_rows import node_csv
        from photon_core.report.page import render
        from photon_core.report.tree import tree_notes, tree_sections

        run = run_of(federation)
        record = read_record(run, federation.rounds.count)
        if record.run_manifest is None:
            raise PhotonError(f"run '{run.run}' has no rounds in {run.store.url} yet. Write: photon run")
        tree = read_tree(world, problems) if is_tree(world) else None
        show.activity("report", "drawing")
        page = render(record, more=tree_sections(tree), remarks=tree_notes(tree)) if tree else render(record)
        write_page(target, page)
        if tree and curves:
            write_page(curves, node_csv(tree))
        show.finish("report")
        show.say(
            f"{target}: {len(record.trained)} rounds, {len(page.encode()) / 1e6:.1f} MB; open it in a browser"
            + (f"; curves of all nodes in {curves}" if curves else "")
        )


def is_tree(world: World) -> bool:
    """Whether the page is also about a tree: the federation has key layers, or federations below it."""
    return world.federation.worldlm is not None or bool(world.federation.federations)


def _curves(target: Path) -> Path | None:
    """The file beside a page for its curves; None beside a device.

    Raises:
        FederationError: it would be the page itself.
    """
    if target.exists() and not target.is_file() and not target.is_dir():
        return None
    if target.suffix == CURVES:
        raise FederationError(f"--to {target}: is the name of the curves beside the page; write a name with .html")
    return target.with_suffix(CURVES)
