"""A place that Photon writes must not overlap with another one or a source, as written or with links resolved.

Two places overlap if one is, holds or lies in the other. A source covers all places where its pattern can match:
every folder that the pattern without its last part matches. Without a pattern, it covers its path and everything
below. Sources may overlap each other, and so may the folders of trackers.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import combinations, product
from pathlib import Path
from typing import Protocol

from schemas.errors import FederationError
from schemas.sections.deploy import Storage
from schemas.sections.mounts import Mount, other_names, seen_twice
from schemas.sections.sites import Site
from schemas.sections.trackers import Tracker
from schemas.sections.values import is_s3, wrong

Key = tuple[str | int, ...]
WRITTEN_BELOW = ("data", "state", "cache", "nodes", "log")  # in a state_dir; each may be a link to another disk
REMEDY = "Photon writes and removes files there: write places that do not contain each other"


class HasRun(Protocol):
    """The place of a run: a federation file, or its section `parent`."""

    @property
    def run(self) -> str: ...
    @property
    def store(self) -> str: ...
    @property
    def storage(self) -> Storage: ...


class HasPlaces(Protocol):
    """The part of a federation that this module reads. A protocol, because the federation imports this module."""

    run: str
    store: str
    storage: Storage
    sites: list[Site]
    trackers: list[Tracker]


@dataclass(frozen=True)
class Place:
    """A place, and its key in the file.

    Args:
        key: path of its key in the file, for the error's line.
        name: name of its key for people.
        value: value in the file.
        disk: identity of its file system; paths of different ones never overlap.
        parts: parts of its path; for a pattern, parts of the folders in which it can match.
        site: number of its site; None if it belongs to the whole federation.
        source: flag: it is only read.
        pattern: flag: `parts` are patterns.
    """

    key: Key
    name: str
    value: str
    disk: tuple[str, ...]
    parts: tuple[str, ...]
    site: int | None = None
    source: bool = False
    pattern: bool = False


def places(federation: HasPlaces) -> Iterator[Place]:
    """Every written place, in the order of the file, then every source."""
    yield _place(("store",), "store", federation.store, federation.storage.endpoint_url)
    for i, tracker in enumerate(federation.trackers):
        if tracker.folder is not None:
            yield _place(("trackers", i, "folder"), f"trackers[{tracker.name}].folder", tracker.folder)
    for i, site in enumerate(federation.sites):
        folder = site.state_dir or f"photon-sites/{federation.run}/{site.name}"
        at: Key = ("sites", i, "state_dir" if site.state_dir else "name")
        yield replace(_place(at, f"sites[{site.name}].state_dir", folder), site=i)
        if site.shards is not None:
            endpoint = _endpoint(federation, site)
            shards = _place(("sites", i, "shards"), f"sites[{site.name}].shards", site.shards, endpoint)
            yield replace(shards, site=i)
    yield from _sources(federation)


def run_folder(key: Key, name: str, one: HasRun) -> Place:
    """The folder of a run in its store; `key` and `name` identify it in the file."""
    return _place(key, name, f"{one.store.rstrip('/')}/{one.run}", one.storage.endpoint_url)


def _sources(federation: HasPlaces) -> Iterator[Place]:
    for i, site in enumerate(federation.sites):
        for j, stream in enumerate(site.streams):
            name = f"sites[{site.name}].streams[{stream.name}].source"
            at: Key = ("sites", i, "streams", j, "source")
            place = _place(at, name, stream.source, _endpoint(federation, site))
            yield replace(place, site=i, source=True)  # a file's name may contain brackets or stars, too
            if glob.has_magic(stream.source):
                yield replace(place, site=i, source=True, pattern=True, parts=place.parts[:-1])


def _endpoint(federation: HasPlaces, site: Site) -> str | None:
    return (site.storage or federation.storage).endpoint_url


def _place(key: Key, name: str, value: str, endpoint: str | None = None) -> Place:
    disk, path = _split(value)
    if disk == ("s3",):
        disk = ("s3", (endpoint or "").rstrip("/").lower())
    if disk == ("file",):
        path = os.path.normpath(path)
        disk = ("file", "/" if path.startswith("/") else "")
    return Place(key, name, value, disk, tuple(part for part in path.split("/") if part not in ("", ".")))


def _split(value: str) -> tuple[tuple[str, ...], str]:
    """File system and path of a place; for a chain of URLs those of the last, from which the bytes come."""
    protocol, separator, path = value.rpartition("::")[2].partition("://")
    if not separator or protocol in ("file", "local"):
        return ("file",), path if separator else protocol
    return ("s3" if is_s3(f"{protocol}://") else protocol,), path


def overlap(first: Place, second: Place) -> str | None:
    """Relation of the first place to the second: is, holds or lies in; None if they do not overlap."""
    if first.disk != second.disk or (first.source and second.source):
        return None
    if first.key[:1] == second.key[:1] == ("trackers",):  # each writes under its own names
        return None
    for mine, theirs in zip(first.parts, second.parts, strict=False):
        if second.pattern and "**" in theirs:
            return "may hold"
        if mine != theirs and not (second.pattern and fnmatchcase(mine, theirs)):
            return None
    if len(first.parts) == len(second.parts):
        return "is"
    return "holds" if len(first.parts) < len(second.parts) else "lies in"


def refuse_as_written(federation: HasPlaces) -> None:
    """Refuse a file whose places overlap as written, within a site or between sites.

    Raises:
        PydanticCustomError: two places overlap; it is raised for the first pair, at the key of the second.
    """
    for first, second in _pairs(places(federation)):
        if how := overlap(first, second):
            raise wrong(*_problem(first, how, second))


def linked(federation: HasPlaces, sites: Iterable[str] | None, look: bool = True) -> tuple[str, Key] | None:
    """The first overlap on this machine with links resolved: its message and key; None without an overlap.

    Args:
        federation: federation that is already checked as written.
        sites: names of this machine's sites; all if None.
        look: flag: also follow links among the files that the sources match.
    """
    wanted = None if sites is None else set(sites)
    here = {i for i, site in enumerate(federation.sites) if wanted is None or site.name in wanted}
    mounts = seen_twice()
    found = [real for place in places(federation) for real in _real(place, look and place.site in here, mounts)]
    for first, second in _pairs(found):
        common = first.site is None and second.site is None
        if first.key == second.key or not (common or first.site in here or second.site in here):
            continue
        if how := overlap(first, second):
            message, *at = _problem(first, how, second, " with links resolved")
            return message, tuple(at)
    return None


def real_places(federation: HasPlaces) -> list[Place]:
    """Every place as this machine has it: with links resolved, also those among the files of the sources."""
    mounts = seen_twice()
    return [real for place in places(federation) for real in _real(place, True, mounts)]


def check_overlap(federation: HasPlaces, sites: Iterable[str] | None = None, look: bool = True) -> None:
    """Refuse sites whose places overlap on this machine. Arguments as for `linked`.

    Raises:
        FederationError: two places overlap; the message names both keys and both places.
    """
    if problem := linked(federation, sites, look):
        message, key = problem
        raise FederationError(f"{next(p.name for p in places(federation) if p.key == key)}: {message}")


def check_target(federation: HasPlaces, option: str, target: str | os.PathLike[str]) -> None:
    """Refuse a target that overlaps with the federation's places.

    Args:
        federation: federation with the places.
        option: name of the target's option, such as --to.
        target: path of the new file or folder.

    Raises:
        FederationError: the target is, holds or lies in one of the places, as written or with links resolved.
    """
    made = _place((), option, os.path.abspath(target))  # noqa: PTH100 - links are resolved separately
    written = list(places(federation))
    mounts = seen_twice()
    real = [place for one in written for place in _real(one, False, mounts)]
    for firsts, others in (([made], written), (_real(made, False, mounts), real)):
        for first, other in product(firsts, others):
            if how := overlap(first, other):
                raise FederationError(
                    f"{option} {target}: {how} {other.name} ('{other.value}'), which is for Photon's own files; "
                    "write another path"
                )


def _pairs(found: Iterable[Place]) -> Iterator[tuple[Place, Place]]:
    """Pairs of written places, and of each written place with each source. A pattern comes second."""
    everything = list(found)
    written = [place for place in everything if not place.source]
    yield from combinations(written, 2)
    yield from ((place, source) for place in written for source in everything if source.source)


def _problem(first: Place, how: str, second: Place, more: str = "") -> tuple[str, *Key]:
    """The message and its key, which is that of the later written place in the file."""
    if not second.source:
        first, second, how = second, first, {"holds": "lies in", "lies in": "holds"}.get(how, how)
    what = f"{second.name} '{second.value}'"
    if second.pattern:
        what = f"a folder where {what} can match"
    return f"'{first.value}' {how} {what}{more}; {REMEDY}", *first.key


def _absolute(place: Place) -> Place:
    """A place with an absolute path, as the site's processes resolve it: from `~`, or from the working folder."""
    if place.disk != ("file", ""):
        return place
    path = os.path.abspath(os.path.expanduser("/".join(place.parts)))  # noqa: PTH100, PTH111 - links stay
    return replace(place, disk=("file", "/"), parts=tuple(part for part in path.split("/") if part))


def _resolved(place: Place) -> Place:
    if place.disk != ("file", "/"):
        return place
    plain = next(
        (i for i, part in enumerate(place.parts) if place.pattern and glob.has_magic(part)), len(place.parts)
    )
    real = os.path.realpath("/" + "/".join(place.parts[:plain]))
    return replace(place, parts=(*(part for part in real.split("/") if part), *place.parts[plain:]))


def _real(place: Place, look: bool, mounts: list[Mount]) -> Iterator[Place]:
    """The place with links resolved, the targets of links in it that Photon follows, and their other names."""
    for real in _linked(_absolute(place), look):
        yield real
        if real.disk == ("file", "/") and mounts:
            for device, parts in other_names(real.parts, mounts):
                yield replace(real, disk=("mount", device), parts=parts)


def _linked(place: Place, look: bool) -> Iterator[Place]:
    yield _resolved(place)
    if place.disk != ("file", "/"):
        return
    path = "/" + "/".join(place.parts)
    links: Iterable[str] = ()
    if place.key[-1:] in (("state_dir",), ("name",)):
        links = (os.path.join(path, name) for name in WRITTEN_BELOW)  # noqa: PTH118
    elif place.source and look:
        links = _matched(place, path)
    for link in links:
        if Path(link).is_symlink() or place.pattern:
            yield _resolved(replace(place, pattern=False, parts=tuple(link.strip("/").split("/"))))


def _matched(place: Place, path: str) -> Iterator[str]:
    """Paths that a source matches: every file of a pattern, every entry below a folder."""
    if place.pattern:
        yield from local_matches(_split(place.value)[1])
        return
    for folder, folders, files in os.walk(path):
        yield from (os.path.join(folder, name) for name in (*folders, *files))  # noqa: PTH118


def local_matches(pattern: str) -> list[str]:
    """Paths of this machine that a pattern matches, by the same rule as when sources are read: below a star no
    link is followed, so that a cycle of links ends."""
    import fsspec

    try:
        return list(fsspec.filesystem("file").glob(pattern))
    except ValueError:  # two stars inside a longer part: reading would fail in the same way
        return []
