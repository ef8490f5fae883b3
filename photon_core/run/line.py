"""The line of rounds that a model comes from: after a rollback from round 4 to 2, that of round 6 is 0, 1, 2, 6.

A run's rounds are one chain of commits, and a rollback is a link of it like any other. Code that looks back at how
the model was trained (site states, sampling, guard, curves) follows the line instead: the line skips a round
without updates, and all rounds that it rolled back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from photon_core.errors import PhotonError
from photon_core.formatting import printable
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import LastUpdate, RoundManifest, UpdateRef

TOKENS = "data_tokens"  # metric of an update: number of tokens that a site has prepared for training


def line(run: Run, t: int) -> Iterator[RoundManifest]:
    """The trained rounds that round t's model comes from, from the newest down to round 0, read one by one.

    Raises:
        PhotonError: a round is missing.
    """
    return (manifest for manifest in whole_line(run, t) if manifest.kind == "train")


def whole_line(run: Run, t: int) -> Iterator[RoundManifest]:
    """The same with the rounds without updates among them."""

    def read(at: int) -> RoundManifest:
        manifest = run.round(at)
        if manifest is None:
            raise PhotonError(f"{run.store.url}: round {at} of run '{run.run}' is missing, but round {t} exists")
        return manifest

    return back(read, t)


def back(read: Callable[[int], RoundManifest], t: int) -> Iterator[RoundManifest]:
    """The whole line of round t, from the newest round down. `read` gives the manifest of a round."""
    at: int | None = t
    while at is not None:
        manifest = read(at)
        yield manifest
        at = parent(manifest)


def newest_entry(run: Run, t: int | None = None) -> RoundManifest | None:
    """The last entry on the line of round t, or of the latest; None if there is none."""
    at = run.latest() if t is None else t
    return None if at is None else first_entry(whole_line(run, at))


def first_entry(whole: Iterable[RoundManifest]) -> RoundManifest | None:
    """The first entry of a whole line that begins with the newest round; None if there is none."""
    for manifest in whole:
        if manifest.kind == "entry":
            return manifest
        if not manifest.entries:
            break
    return None


def place_of(run: Run, t: int) -> int:
    """The place that round t, which is not committed yet, will have among the trained rounds of its line."""
    before = run.round(t - 1) if t > 0 else None
    return t if before is None else before.place + 1


def parent(manifest: RoundManifest) -> int | None:
    """The round whose model this one comes from; None for round 0."""
    if manifest.to is not None:
        return manifest.to
    return manifest.round - 1 if manifest.round else None


def on_line(rounds: Sequence[RoundManifest]) -> list[RoundManifest]:
    """The line of the last of these rounds, the oldest first. `rounds` are all rounds from 0 on."""
    return [manifest for manifest in whole_of(rounds) if manifest.kind == "train"][::-1]


def whole_of(rounds: Sequence[RoundManifest]) -> Iterator[RoundManifest]:
    """The whole line of the last of these rounds, the newest first. `rounds` are all rounds from 0 on."""
    return back(rounds.__getitem__, rounds[-1].round) if rounds else iter(())


def rounds_left(federation: Federation, latest: RoundManifest | None) -> int:
    """Number of rounds that are still to be trained. Rounds that were rolled back do not count as trained."""
    return max(0, federation.total_rounds - (latest.place if latest else 0))


def progress(federation: Federation, done: int) -> str:
    """`3 of 10 rounds`; `3 rounds` if there is a parent, which determines their number."""
    return f"{done} rounds" if federation.rounds.count is None else f"{done} of {federation.rounds.count} rounds"


def last_number(federation: Federation, latest: RoundManifest | None) -> int:
    """Number of the round that completes rounds.count; it is larger than rounds.count after a rollback."""
    return (latest.round if latest else 0) + rounds_left(federation, latest)


def newest(run: Run) -> RoundManifest | None:
    """The latest committed round's manifest, or None.

    Raises:
        CorruptFile: its link to the round before is broken.
    """
    latest = run.latest()
    return None if latest is None else run.round(latest)


def sentence(manifest: RoundManifest) -> str:
    """A round without updates in words: what it is, who requested it, and why."""
    if (above := manifest.parent) is not None:
        return f"round {manifest.round} enters round {above.round} of run '{printable(above.run, 100)}'"
    why = f" ({printable(manifest.reason, 300)})" if manifest.reason else ""
    by = f", requested by {printable(manifest.who, 100)}" if manifest.who else ""
    return f"round {manifest.round} is a {manifest.kind} to round {manifest.to}{by}{why}"


def last_updates(run: Run, t: int) -> dict[str, LastUpdate]:
    """site -> its newest aggregated update on the line of round t, which includes round t.

    One manifest is read; more only in old runs, whose manifests do not name earlier updates.
    """
    found: dict[str, LastUpdate] = {}
    for manifest in line(run, t):
        for site, update in manifest.updates.items():
            _add(
                found,
                site,
                LastUpdate(round=manifest.round, attempt=update.attempt, data_tokens=_tokens(update)),
            )
        for site, contribution in (manifest.earlier or {}).items():
            _add(found, site, contribution)
        if manifest.earlier is not None:
            break
    return found


def earlier(run: Run, t: int, updates: Mapping[str, UpdateRef]) -> dict[str, LastUpdate]:
    """Earlier updates for round t's manifest, of sites that have no update in it, or one without tokens."""
    last = last_updates(run, t - 1)
    unknown = {site for site, update in updates.items() if not _tokens(update)}
    return {s: one for s, one in last.items() if s not in updates or (s in unknown and one.data_tokens)}


def _add(found: dict[str, LastUpdate], site: str, older: LastUpdate) -> None:
    newer = found.setdefault(site, older)
    if not newer.data_tokens and older.data_tokens:
        found[site] = newer.model_copy(update={"data_tokens": older.data_tokens})


def _tokens(update: UpdateRef) -> float:
    value: Any = update.metrics.get(TOKENS, 0.0)
    return float(value) if 0 < value < float("inf") else 0.0
