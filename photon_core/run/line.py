"""The rounds that a model comes from. After a rollback from round 4 to 2, round 6 comes from 0, 1, 2 and 6.

A run's rounds are one chain of commits, and a rollback is a link of it like any other. Whatever looks back at how
the model was trained (site states, sampling, guard, curves) follows the line instead: it passes over a round
without updates, and over all that this round has left behind.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from photon_core.errors import PhotonError
from photon_core.formatting import printable
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import LastUpdate, RoundManifest, UpdateRef

TOKENS = "data_tokens"  # the metric of an update that tells how many tokens a site has prepared for training


def line(run: Run, t: int) -> Iterator[RoundManifest]:
    """The trained rounds that round t's model comes from, the newest first, down to round 0; read one by one.

    Raises:
        PhotonError: one of them is missing.
    """
    at: int | None = t
    while at is not None:
        manifest = run.round(at)
        if manifest is None:
            raise PhotonError(f"{run.store.url}: round {at} of run '{run.run}' is missing, but round {t} is there")
        if manifest.kind == "train":
            yield manifest
        at = parent(manifest)


def place_of(run: Run, t: int) -> int:
    """What round t, which is not committed, would be among the trained rounds that its model comes from."""
    before = run.round(t - 1) if t > 0 else None
    return t if before is None else before.place + 1


def parent(manifest: RoundManifest) -> int | None:
    """The round whose model this one comes from; None for round 0."""
    if manifest.to is not None:
        return manifest.to
    return manifest.round - 1 if manifest.round else None


def on_line(rounds: Sequence[RoundManifest]) -> list[RoundManifest]:
    """The same of all rounds from 0 to the last, read before; the oldest first."""
    found: list[RoundManifest] = []
    at = rounds[-1].round if rounds else None
    while at is not None:
        manifest = rounds[at]
        if manifest.kind == "train":
            found.append(manifest)
        at = parent(manifest)
    return found[::-1]


def rounds_left(federation: Federation, latest: RoundManifest | None) -> int:
    """Rounds that are still to be trained. A rollback gives those that it has left behind back to rounds.count."""
    return max(0, federation.total_rounds - (latest.place if latest else 0))


def progress(federation: Federation, done: int) -> str:
    """`3 of 10 rounds`; `3 rounds` if there is a parent, which determines their number."""
    return f"{done} rounds" if federation.rounds.count is None else f"{done} of {federation.rounds.count} rounds"


def last_number(federation: Federation, latest: RoundManifest | None) -> int:
    """Number of the round with which rounds.count is reached: larger than that after a rollback."""
    return (latest.round if latest else 0) + rounds_left(federation, latest)


def newest(run: Run) -> RoundManifest | None:
    """The latest committed round's manifest. Raises CorruptFile as `Run.latest` does."""
    latest = run.latest()
    return None if latest is None else run.round(latest)


def sentence(manifest: RoundManifest) -> str:
    """A round without updates in words: what it is, who asked for it, and why."""
    if (above := manifest.parent) is not None:
        return f"round {manifest.round} enters round {above.round} of run '{printable(above.run, 100)}'"
    why = f" ({printable(manifest.reason, 300)})" if manifest.reason else ""
    by = f", asked for by {printable(manifest.who, 100)}" if manifest.who else ""
    return f"round {manifest.round} is a {manifest.kind} to round {manifest.to}{by}{why}"


def last_updates(run: Run, t: int) -> dict[str, LastUpdate]:
    """site -> its newest aggregated update on the line of round t, this one included.

    One manifest is read, and more only of a run whose rounds do not yet say what was earlier.
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
    """What round t's manifest says of sites that have no update in it, or one that does not say their tokens."""
    found = last_updates(run, t - 1)
    untold = {site for site, update in updates.items() if not _tokens(update)}
    return {s: one for s, one in found.items() if s not in updates or (s in untold and one.data_tokens)}


def _add(found: dict[str, LastUpdate], site: str, older: LastUpdate) -> None:
    newer = found.setdefault(site, older)
    if not newer.data_tokens and older.data_tokens:
        found[site] = newer.model_copy(update={"data_tokens": older.data_tokens})


def _tokens(update: UpdateRef) -> float:
    value: Any = update.metrics.get(TOKENS, 0.0)
    return float(value) if 0 < value < float("inf") else 0.0
