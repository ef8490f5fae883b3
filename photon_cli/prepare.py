"""photon prepare: turn a site's text into validated shards, on this machine, without a server."""

from pathlib import Path

from photon_cli.progress import Display, display
from photon_core.data.prepare import prepare_site
from schemas.federation import Federation
from schemas.reading.load import check_paths
from schemas.view import SiteView, view_of


def prepare_sites(federation: Federation, file: Path, sites: list[str] | None, quiet: bool) -> None:
    """Prepare the named sites, or all.

    Raises:
        FederationError: there is no such site, or a source is missing.
        DataError: text cannot be read, or does not meet an expectation.
    """
    for site in sites or []:
        view_of(federation, site)
    wanted = sites or [site.name for site in federation.sites]
    check_paths(federation, wanted, file=file)
    with display(quiet) as show:
        for site in wanted:
            prepare_with(show, view_of(federation, site))


def prepare_with(show: Display, view: SiteView) -> None:
    """Prepare one site and print a summary."""
    site = view.name

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
