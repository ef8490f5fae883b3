"""One site of one federation: its resolved settings, and its folders."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.sections.deploy import PoolType
from schemas.sections.hardware import Hardware
from schemas.sections.local import Local
from schemas.sections.sites import Site, Stream
from schemas.sections.update import Update
from schemas.sections.values import is_s3


@dataclass(frozen=True)
class SiteView:
    """A site, or one node of a site whose nodes train independently. Made by `view_of` and passed down.

    Args:
        federation: file, for settings that all sites share.
        section: section of the site.
        local, update: settings of training and update; the file's, except for a node.
    """

    federation: Federation
    section: Site
    local: Local
    update: Update

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def streams(self) -> list[Stream]:
        return self.section.streams

    @property
    def hardware(self) -> Hardware | None:
        """Devices that the file declares."""
        return self.section.hardware

    @property
    def steps(self) -> int:
        """Local steps in a round, unless the time limit ends them earlier."""
        return self.section.steps or self.local.steps

    @property
    def time_limit(self) -> float | None:
        """Seconds after which its local training ends, with the current step."""
        return self.section.time_limit

    @property
    def micro_batch(self) -> int | Literal["auto"] | None:
        """Micro-batch in the file."""
        return self.section.micro_batch or self.local.micro_batch

    @property
    def memory_gb(self) -> float | None:
        """Memory limit of training on one device, in 10^9 bytes: the smallest in the file, if any."""
        given = [self.hardware.memory_gb if self.hardware else None]
        given += [self.local.memory_gb] if self.micro_batch == "auto" else []
        return min((gigabytes for gigabytes in given if gigabytes is not None), default=None)

    @property
    def pool_type(self) -> PoolType:
        """Type of its work pool, whose name is the section's `work_pool`."""
        return self.section.pool_type or self.federation.deploy.pool_type

    def options(self, place: str) -> dict[str, Any]:
        """Keyword arguments for fsspec to reach one of its sources, or its shards."""
        return (self.section.storage or self.federation.storage).options() if is_s3(place) else {}

    @property
    def state_dir(self) -> Path:
        """Private folder; photon-sites/<run>/<site> in the working folder if the file names none."""
        if self.section.state_dir is not None:
            return Path(self.section.state_dir).expanduser()
        return Path("photon-sites") / self.federation.run / self.name

    @property
    def data_dir(self) -> Path:
        """Folder of its MDS shards and of data.json, the manifest that covers them."""
        return self.state_dir / "data"

    @property
    def cache_dir(self) -> Path:
        """Folder of results that can be recomputed: verified files, features of shards."""
        return self.state_dir / "cache"

    def split_dir(self, stream: str, split: str) -> Path:
        """MDS folder of one split ('train' or 'valid') of one stream."""
        return self.data_dir / stream / split

    def node(self, number: int) -> "SiteView":
        """One of its nodes, from 1, if its nodes train independently.

        A node has its own folder and only its own devices. Its result is neither evaluated, clipped, noised nor
        compressed, because the site's mean is.
        """
        assert self.hardware is not None
        alone = self.hardware.model_copy(update={"nodes": 1, "interconnect": None, "parallel": "auto"})
        folder = str(self.state_dir / "nodes" / str(number))
        return replace(
            self,
            section=self.section.model_copy(update={"hardware": alone, "state_dir": folder}),
            local=self.local.model_copy(update={"evaluate": False}),
            update=Update(model_dtype=self.update.model_dtype),
        )


def views(federation: Federation) -> list[SiteView]:
    """Views of all sites, including paused ones, in the file's order."""
    return [SiteView(federation, section, federation.local, federation.update) for section in federation.sites]


def active_views(federation: Federation) -> list[SiteView]:
    """The views of the sites that take part."""
    return [view for view in views(federation) if not view.section.paused]


def view_of(federation: Federation, site: str) -> SiteView:
    """View of the site with this name.

    Raises:
        FederationError: there is no such site; the message lists the existing ones.
    """
    for section in federation.sites:
        if section.name == site:
            return SiteView(federation, section, federation.local, federation.update)
    names = ", ".join(section.name for section in federation.sites)
    inner = any(child.name == site for child in federation.federations)
    problem = f"'{site}' is a federation, not a site" if inner else f"no site is named '{site}'"
    remedy = f"write one of: {names}" if names else "there are none in this file: name one in the file of a member"
    raise FederationError(f"sites: {problem}; {remedy}")
