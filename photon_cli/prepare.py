"""photon prepare: turn a site's text into validated shards, on this machine, without a server."""

from collections.abc import Iterable

from photon_cli.progress import Display, display
from photon_cli.tree import sites_below
from photon_core.data.prepare import prepare_site
from photon_core.errors import FederationError
from photon_core.evidence.nodes import path_of
from schemas.reading.load import check_paths
from schemas.reading.places import local_path
from schemas.reading.world import World
from schemas.view import SiteView, view_of, views


def prepare_sites(world: World, sites: list[str] | None, quiet: bool) -> None:
    """Prepare the named sites, or all sites of the tree.

    Args:
        world: the federation, and those below it.
        sites: names, or paths such as europe/berlin.
        quiet: print no progress.

    Raises:
        FederationError: there is no such site, or a source is missing.
        DataError: text cannot be read, or does not meet an expectation.
    """
    below = sites_below(world)
    for site in sites or []:
        if site not in below:
            _refuse(world, site, below)
    wanted = sites or list(below)
    for names, node in world.nodes():
        mine = [view.name for view in views(node.federation) if path_of(*names, view.name) in wanted]
        if mine:
            check_paths(node.federation, mine, file=local_path(node.file))
    with display(quiet) as show:
        for site in wanted:
            prepare_with(show, below[site], site)


def _refuse(world: World, site: str, below: Iterable[str]) -> None:
    if not world.children:
        view_of(world.federation, site)
    raise FederationError(f"--site {site}: no site has this name; write one of: {', '.join(below)}")


def prepare_with(show: Display, view: SiteView, site: str) -> None:
    """Prepare one site and print a summary under this name."""

    def progress(step: str, done: int, total: int) -> None:
        show.activity(site, step, done, total or None)

    show.activity(site, "prepare")
    manifest = prepare_site(view, progress)
    show.finish(site)
    show.say(
        f"{site}: {manifest.train_documents:,} documents and {manifest.train_tokens:,} tokens to train on, "
        f"{manifest.valid_documents:,} documents held out, unigram perplexity {manifest.unigram_perplexity:.1f} "
        f"({view.data_dir})"
    )
    if view.section.data_tokens != manifest.train_tokens:
        show.say(f"{site}: write in the federation file, at this site: data_tokens: {manifest.train_tokens}")
