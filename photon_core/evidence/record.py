"""The record that a report reads: the manifests of a run, and a few sums over them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, TypeVar

from photon_core.errors import CorruptFile, StoreRefused
from photon_core.run.history import READERS, history
from photon_core.run.line import on_line
from photon_core.run.run import Run
from schemas.manifests import RoundManifest, RunManifest, UpdateManifest
from schemas.secrets import redacted

PHASES = ("wait", "validate", "download", "train", "encode", "upload", "aggregate", "evaluate")
FLOAT32_BYTES = 4

Item = TypeVar("Item")


@dataclass(frozen=True)
class Record:
    """A run in its store.

    Args:
        run: name of the run.
        url: URL of the run's folder in the store.
        run_manifest: run.json; None before the run has started.
        rounds: manifests of all committed rounds, from 0.
        updates: manifests of the sites' updates in the last trained round.
        last_sha256: hash of the last round's round.json.
        count: number of rounds in the federation file.
    """

    run: str
    url: str
    run_manifest: RunManifest | None
    rounds: list[RoundManifest]
    updates: dict[str, UpdateManifest] = field(default_factory=dict)
    last_sha256: str = ""
    count: int | None = None

    @cached_property
    def line(self) -> list[RoundManifest]:
        """The rounds that the latest model comes from, from round 0 on: all but those that were rolled back."""
        return on_line(self.rounds)

    @property
    def trained(self) -> list[RoundManifest]:
        """The rounds in which sites trained the latest model: the line without round 0."""
        return self.line[1:]

    @property
    def tried(self) -> list[RoundManifest]:
        """Every round in which sites trained, also if it was rolled back."""
        return [manifest for manifest in self.rounds[1:] if manifest.kind == "train"]

    @property
    def federation(self) -> dict[str, Any]:
        """The federation file of the run's start, without secrets that files of older versions may hold."""
        return redacted(self.run_manifest.federation) if self.run_manifest else {}

    @property
    def sites(self) -> list[str]:
        """Every site of the file, in its order, then sites that occur in rounds only."""
        names = dict.fromkeys(str(site["name"]) for site in self.federation.get("sites", []))
        for manifest in self.rounds:
            names |= dict.fromkeys([*manifest.sampled, *sorted(manifest.evaluations)])
        return list(names)

    @property
    def parameters(self) -> int:
        tensors = [tensor for entry in self.rounds[0].model for tensor in entry.tensors.values()]
        return sum(prod(tensor.held) for tensor in tensors)


def read_record(run: Run, count: int | None = None, last: int | None = None) -> Record:
    """Read everything that a report shows from the store.

    Args:
        run: run to read.
        count: number of rounds in the federation file.
        last: newest round to read; by default the latest committed one.

    Raises:
        PhotonError: a round is missing, or a manifest is damaged.
    """
    rounds = history(run, last)
    trained = on_line(rounds)[-1:]  # the last one
    latest, places = (trained[0].round, trained[0].updates) if trained else (0, {})
    with ThreadPoolExecutor(READERS) as pool:
        updates = pool.map(lambda site: _update(run, latest, site, places[site].attempt), places)
        committed = {update.site: update for update in updates if update is not None}
    return Record(
        run=run.run,
        url=f"{run.store.url}/{run.run}",
        run_manifest=run.run_manifest(),
        rounds=rounds,
        updates=committed,
        last_sha256=run.round_sha256(len(rounds) - 1) if rounds else "",
        count=count,
    )


def _update(run: Run, t: int, site: str, attempt: int) -> UpdateManifest | None:
    try:
        return run.update(t, site, attempt)
    except (CorruptFile, StoreRefused, OSError):  # the round's manifest still has the important values
        return None


def traffic(record: Record) -> list[tuple[float, float]]:
    """Bytes that this run has transferred, and that data-parallel training would have, summed up to each round.

    This run: every sampled site downloads the round before (its model, in bfloat16 where the file requests it, and
    averaged moments, if any) and uploads its update. Both are counted with their stored sizes. Data-parallel
    training of the same steps over the same K sites synchronises float32 gradients of N parameters at every step.
    With the ring all-reduce, which transfers the least, every site sends 2 (K - 1) / K * 4 N bytes a step, so K
    sites send

        2 (K - 1) * 4 N * H     bytes a round of H local steps

    (Patarasuk and Yuan, 2009, https://doi.org/10.1016/j.jpdc.2008.09.002). H is the largest number of steps of a
    site; K is the number of sites whose updates were aggregated.
    """
    sums, ours, theirs = [], 0.0, 0.0
    for before, manifest in pairwise(record.rounds):
        fetched = [*(before.download or before.model), *before.moments]
        ours += sum(update.bytes for update in manifest.updates.values())
        ours += len(manifest.sampled) * sum(entry.bytes for entry in fetched)
        steps = max((update.steps for update in manifest.updates.values()), default=0)
        theirs += 2 * max(0, len(manifest.updates) - 1) * FLOAT32_BYTES * record.parameters * steps
        sums.append((ours, theirs))
    return sums


def busy(manifest: RoundManifest, site: str) -> float | None:
    """Seconds from the opening of a round until the site's update was committed; None if unknown."""
    ends = [span.start + span.seconds for span in manifest.spans.get(site, []) if span.phase != "evaluate"]
    if ends and site in manifest.updates:
        return max(ends)
    update = manifest.updates.get(site)
    return update.metrics.get("seconds") if update else None


def series(rounds: Sequence[RoundManifest], name: str) -> list[tuple[int, float]]:
    """(round, value) of a metric, for the rounds that have it."""
    return [(m.round, m.metrics[name]) for m in rounds if name in m.metrics]


def thin(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items, evenly spread, with the first and the last."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[-1]]
    step = (len(items) - 1) / (limit - 1)
    return [items[round(i * step)] for i in range(limit)]
