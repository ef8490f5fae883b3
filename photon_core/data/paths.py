"""Where a site keeps its private state and its prepared shards."""

from pathlib import Path

from photon_core.errors import FederationError
from schemas.federation import Federation
from schemas.sections.sites import Site


def find_site(federation: Federation, site: str) -> Site:
    """The site's section of the federation file.

    Raises:
        FederationError: there is no such site; the text names those that there are.
    """
    for section in federation.sites:
        if section.name == site:
            return section
    names = ", ".join(section.name for section in federation.sites)
    raise FederationError(f"sites: no site is named '{site}'; write one of: {names}")


def state_dir(federation: Federation, site: str) -> Path:
    """The site's private folder; photon-sites/<run>/<site> in the working folder if the file names none."""
    section = find_site(federation, site)
    if section.state_dir is not None:
        return Path(section.state_dir).expanduser()
    return Path("photon-sites") / federation.run / site


def data_dir(federation: Federation, site: str) -> Path:
    """The folder of the site's MDS shards and of data.json, the manifest that covers them."""
    return state_dir(federation, site) / "data"


def cache_dir(federation: Federation, site: str) -> Path:
    """The folder of what can be computed again: which files were verified, features of shards."""
    return state_dir(federation, site) / "cache"


def split_dir(federation: Federation, site: str, stream: str, split: str) -> Path:
    """The MDS folder of one split ('train' or 'valid') of one stream."""
    return data_dir(federation, site) / stream / split
