"""Garbage collection: find and delete tensor files that are no longer needed, of old rounds and unreferenced ones.

Manifests (JSON) are always kept, so that the chain of rounds, `photon status` and reports continue to work. Rounds
that are not committed are never touched: they hold updates to be aggregated, and uploads may be running. A plan
made from a listing of the store stays valid while the run continues: later commits only add rounds, and the latest
listed round is kept whole. Only a rollback can name an old round's files again, so it is checked before a removal.

The key layers of each member's newest aggregated update are kept at any age: the member continues with them. So is
an entry while its rounds are made: the contribution to the parent is the change since the entry.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from photon_core.errors import PhotonError, StoreConflict, StoreRefused, StoreUnavailable, Unreadable
from photon_core.run.history import removed_rounds
from photon_core.run.line import last_updates, newest_entry
from photon_core.run.paths import SHARDS, Place, PlaceKind, place_at
from photon_core.run.provenance import utc_now
from photon_core.run.run import Run, files_of
from photon_core.run.start import site_starts
from photon_core.run.updates import files_of_update
from photon_core.store.interface import TEMPORARY, Found
from schemas.manifests import FileEntry, RemovalManifest

DATA = ".safetensors"
DAY = 86_400.0
THREADS = 8  # removals at a time


@dataclass(frozen=True)
class Rule:
    """The retention rule.

    Args:
        last: number of newest committed rounds to keep, at least 1.
        every: divisor: rounds whose number is a multiple of it are kept, too.
        orphan_seconds: age from which Photon's unreferenced files are removed.
    """

    last: int = 3
    every: int | None = None
    orphan_seconds: float = DAY

    def keeps(self, t: int, latest: int) -> bool:
        return t > latest - self.last or bool(self.every and t % self.every == 0)


@dataclass(frozen=True)
class Plan:
    """The files to remove.

    Args:
        latest: latest committed round.
        kept: committed rounds of which all tensors are kept.
        rounds: existing files by round, of the rounds whose tensors are removed.
        orphans: unreferenced files, with names that uploads and aggregations give.
    """

    latest: int
    kept: list[int]
    rounds: dict[int, list[Found]] = field(default_factory=dict)
    orphans: list[Found] = field(default_factory=list)

    @property
    def files(self) -> list[Found]:
        return [*(file for files in self.rounds.values() for file in files), *self.orphans]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def plan(
    found: Sequence[Found],
    named: Mapping[str, int],
    committed: Sequence[int],
    rule: Rule,
    now: float,
    holders: Mapping[int, int] | None = None,
    held: Collection[str] = (),
) -> Plan:
    """The plan. A pure function.

    Args:
        found: all files of the run's folder.
        named: path -> the latest committed round whose manifests cover the file.
        committed: numbers of the committed rounds, ascending, at least one.
        rule: retention rule.
        now: current time, seconds since the epoch.
        holders: round -> the round whose folder holds its files, of rounds that the rule keeps; default: itself.
        held: paths of files to keep, of any round.
    """
    if rule.last < 1 or (rule.every is not None and rule.every < 1):
        raise PhotonError("photon gc keeps at least the latest round: --keep-last and --keep-every are 1 or more")
    latest, gone = committed[-1], removed_rounds(found)
    kept = {t for t in committed if rule.keeps(t, latest)}
    back = {holder for t, holder in (holders or {}).items() if holder != t and t in kept}  # targets of rollbacks
    result = Plan(latest, [t for t in committed if t in kept | back and t not in gone])
    for file in found:
        place = place_at(file.path)
        if place is None or place.t > latest or file.path in held:
            continue
        if file.path in named and file.path.endswith(DATA):
            covering = named[file.path]
            if covering not in back and (covering in gone or covering not in kept):
                result.rounds.setdefault(place.t, []).append(file)
        elif _may_be_orphan(place) and file.path not in named and now - file.modified >= rule.orphan_seconds:
            result.orphans.append(file)
    return result


def _may_be_orphan(place: Place) -> bool:
    """Whether a file has a name that Photon gives only to files that no manifest names yet."""
    return place.kind in SHARDS or bool(TEMPORARY.fullmatch(place.path.rpartition("/")[2]))


def look(run: Run, rule: Rule, now: float | None = None) -> Plan:
    """The plan for a run from the current content of its store. Reads manifests only.

    Raises:
        PhotonError: no round is committed yet, or the chain of rounds is broken.
    """
    latest = run.latest()
    if latest is None:
        raise PhotonError(f"run '{run.run}' has no rounds in {run.store.url} yet: there is nothing to collect")
    found, committed = run.files(), range(latest + 1)
    holders = {t: run.holder(t) for t in committed if rule.keeps(t, latest)}
    named, held = _named(run, found, latest), _held(run, found, holders)
    return plan(found, named, committed, rule, time.time() if now is None else now, holders, held)


def remove(run: Run, plan: Plan) -> None:
    """Remove the files of the plan. Idempotent; may be interrupted anywhere.

    A note of each round is written first, so that missing files are never mistaken for damage. A round is kept if
    a rollback has returned to it since the listing, both before and after the note. So are the key layers with
    which its members then continue.
    """
    kept = _named_since(run, plan.latest)
    rounds = {t: files for t, files in plan.rounds.items() if t not in kept}
    for t, files in rounds.items():
        size = sum(file.bytes for file in files)
        note = RemovalManifest(run=run.run, round=t, files=len(files), bytes=size, created=utc_now())
        try:
            run.record_removal(note)
        except StoreConflict:
            pass  # a concurrent collection, or an earlier one that was interrupted
    kept |= _named_since(run, plan.latest)
    held = _held(run, plan.files, range(plan.latest + 1, (run.latest() or 0) + 1))
    files = [file for t, found in rounds.items() if t not in kept for file in found if file.path not in held]
    with ThreadPoolExecutor(THREADS, "gc") as pool:
        for _ in pool.map(lambda file: run.store.discard(file.path), [*files, *plan.orphans]):
            pass


def _named_since(run: Run, latest: int) -> set[int]:
    """Rounds whose files are named by a round that was committed after `latest`."""
    return {run.holder(t) for t in range(latest + 1, (run.latest() or 0) + 1)}


def _held(run: Run, found: Sequence[Found], rounds: Iterable[int]) -> set[str]:
    """Paths of the files with which a run continues after any of these rounds: those of the newest entry, and the
    key layers of the members' newest updates.

    Args:
        found: all files. If an update's manifest cannot be read, all of the update's files are held.
    """
    held: set[str] = set()
    newest: set[tuple[int, str, int]] = set()
    for t in rounds:
        if (entry := newest_entry(run, t)) is not None:
            held.update(f"{run.round_dir(entry.round)}/{file.path}" for file in files_of(entry))
        if (manifest := run.round(t)) is not None and manifest.key_layers:
            newest |= {(u.round, site, u.attempt) for site, u in last_updates(run, t).items()}
    for place in newest:
        held |= _held_of(run, found, *place)
    return held


def _held_of(run: Run, found: Sequence[Found], t: int, site: str, attempt: int) -> set[str]:
    """The same of one update."""
    folder = run.site_dir(t, site, attempt)
    try:
        update = run.update(t, site, attempt)
    except StoreUnavailable:
        raise
    except (PhotonError, OSError):
        update = None
    if update is None:
        return {file.path for file in found if file.path.startswith(f"{folder}/")}
    return {f"{folder}/{entry.path}" for entry in update.key_layers}


def _named(run: Run, found: Sequence[Found], latest: int) -> dict[str, int]:
    """Path -> the latest round whose manifests cover it. Rounds without data, or not committed, are skipped."""
    with_data = {place.t for f in found if f.path.endswith(DATA) and (place := place_at(f.path))}
    named: dict[str, int] = {}

    def cover(t: int, paths: Iterable[str]) -> None:
        for path in paths:
            named[path] = max(t, named.get(path, 0))

    for file in found:
        place = place_at(file.path)
        if place is None or (t := place.t) not in with_data or t > latest:
            continue
        try:
            for of, folder, entries in _covered(run, place):
                cover(of, (f"{folder}/{entry.path}" for entry in entries))
        except StoreUnavailable:
            raise
        except (Unreadable, StoreRefused, OSError):  # it may be a manifest: everything beside it is kept
            beside = file.path.rpartition("/")[0]
            cover(t, (other.path for other in found if other.path.startswith(f"{beside}/")))
        except PhotonError:  # not a manifest: the files beside it are unreferenced
            if place.kind is PlaceKind.ROUND_JSON:
                raise
    return named


def _covered(run: Run, place: Place) -> Iterator[tuple[int, str, list[FileEntry]]]:
    """The round, the folder and the files that the manifest at this place covers, if it is a manifest."""
    t, site = place.t, place.site
    if place.kind is PlaceKind.ROUND_JSON and (manifest := run.round(t)):
        yield run.holder(t), run.files_dir(t), files_of(manifest)
        for residual in (*manifest.up, *manifest.down, *manifest.received):
            yield t, residual.folder, residual.files
    elif place.kind is PlaceKind.DOWN and (down := run.residuals(t, site)):
        folder = replace(place, kind=PlaceKind.DOWN_FOLDER).path
        yield t, folder, [file for residual in down if residual.folder == folder for file in residual.files]
    elif place.kind is PlaceKind.PARTIAL and (partial := run.partial(place)):
        yield t, replace(place, kind=PlaceKind.MEAN).path, partial.files
    elif place.kind is PlaceKind.START:
        for start in site_starts(run, site):
            yield 0, run.site_dir(0, site, start.attempt), start.files
    elif place.kind is PlaceKind.UPDATE and (update := run.update(t, site, place.attempt)):
        yield t, run.site_dir(t, site, update.attempt), files_of_update(update)
