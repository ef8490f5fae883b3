"""One site of one federation: the settings that hold for it, resolved, and its folders."""

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
    """A site, or one node of a site whose nodes train apart. Made by `view_of` and handed down.

    Args:
        federation: the file, for what all sites share.
        section: the site's own section.
        local, update: how it trains and what it sends: the file's, but for a node.
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
        """What the file says of its devices."""
        return self.section.hardware

    @property
    def steps(self) -> int:
        """Local steps that it makes in a round, unless its time is up before."""
        return self.section.steps or self.local.steps

    @property
    def time_limit(self) -> float | None:
        """Seconds after which its local training ends with the step under way."""
        return self.section.time_limit

    @property
    def micro_batch(self) -> int | Literal["auto"] | None:
        """What the file says of its micro-batch."""
        return self.section.micro_batch or self.local.micro_batch

    @property
    def memory_gb(self) -> float | None:
        """10^9 bytes that training may take of one of its devices: the least that the file says, if any."""
        given = [self.hardware.memory_gb if self.hardware else None]
        given += [self.local.memory_gb] if self.micro_batch == "auto" else []
        return min((gigabytes for gigabytes in given if gigabytes is not None), default=None)

    @property
    def pool_type(self) -> PoolType:
        """The type of its work pool, whose name is the section's `work_pool`."""
        return self.section.pool_type or self.federation.deploy.pool_type

    def options(self, place: str) -> dict[str, Any]:
        """Keyword arguments for fsspec to reach one of its sources, or its shards."""
        return (self.section.storage or self.federation.storage).options() if is_s3(place) else {}

    @property
    def state_dir(self) -> Path:
        """Its private folder; photon-sites/<run>/<site> in the working folder if the file names none."""
        if self.section.state_dir is not None:
            return Path(self.section.state_dir).expanduser()
        return Path("photon-sites") / self.federation.run / self.name

    @property
    def data_dir(self) -> Path:
        """The folder of its MDS shards and of data.json, the manifest that covers them."""
        return self.state_dir / "data"

    @property
    def cache_dir(self) -> Path:
        """The folder of what can be computed again: which files were verified, features of shards."""
        return self.state_dir / "cache"

    def split_dir(self, stream: str, split: str) -> Path:
        """The MDS folder of one split ('train' or 'valid') of one stream."""
        return self.data_dir / stream / split

    def node(self, number: int) -> "SiteView":
        """One of its nodes, the first being 1, where each trains apart.

        A node has a folder of its own and its own devices alone; what it has trained is neither evaluated nor
        clipped, noised or compressed, because the site's mean is.
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
    """The views of all sites, the paused ones too, in the file's order."""
    return [SiteView(federation, section, federation.local, federation.update) for section in federation.sites]


def active_views(federation: Federation) -> list[SiteView]:
    """The views of the sites that take part."""
    return [view for view in views(federation) if not view.section.paused]


def view_of(federation: Federation, site: str) -> SiteView:
    """The view of the site of that name.

    Raises:
        FederationError: there is no such site; the text names those that there are.
    """
    for view in views(federation):
        if view.name == site:
            return view
    names = ", ".join(section.name for section in federation.sites)
    inner = any(child.name == site for child in federation.federations)
    problem = f"'{site}' is a federation, not a site" if inner else f"no site is named '{site}'"
    remedy = f"write one of: {names}" if names else "there are none in this file: name one in the file of a member"
    raise FederationError(f"sites: {problem}; {remedy}")
