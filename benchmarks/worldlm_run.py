"""A row of benchmarks.worldlm: its federations run one after the other, each in its own process."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks import worldlm_models as models
from benchmarks.bare import site_runs, spec_of
from benchmarks.common import Neighbours, cores, our_seconds, python_child
from benchmarks.six_sites import evaluate
from benchmarks.splits import PARTS
from benchmarks.worldlm_rows import CALL, Files, Plan, flat, stages
from benchmarks.worldlm_texts import Shares
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.reading.world import World, load_world
from schemas.view import view_of

Row = dict[str, Any]
Leaves = dict[str, list[Path]]  # site -> files of a model
WITHOUT_ROOT = ("local", "fedper", "tuned")  # rows whose sites' models have no common one


@dataclass
class Found:
    """The result of a row's training.

    Args:
        received, trained: each site's model in both states.
        federations: run -> files of the federation's model; empty if there is none.
        moved: bytes by link; None if nothing is sent.
        tokens: trained tokens of all sites.
    """

    received: Leaves
    trained: Leaves
    federations: Leaves
    moved: dict[str, int] | None
    tokens: int


class Judge:
    """Losses of models on the held-out texts. Each model is evaluated once on a domain.

    Args:
        federation: file with the model's shape.
        held_out: part of PARTS -> domain -> sequences.
    """

    def __init__(self, federation: Federation, held_out: Mapping[str, Mapping[str, Any]]) -> None:
        self._federation, self._held_out = federation, held_out
        self._known: dict[tuple[Any, ...], float] = {}

    def loss(self, files: list[Path], share: Mapping[str, float]) -> dict[str, float]:
        """Part -> loss on a mixture of domains, in nats per token."""
        return {part: sum(self._on(files, part, d) * weight for d, weight in share.items()) for part in PARTS}

    def mean(self, files: list[Path], shares: Shares) -> dict[str, float]:
        """Part -> mean loss of one model over the sites' texts."""
        each = [self.loss(files, share) for share in shares.values()]
        return {part: fmean(loss[part] for loss in each) for part in PARTS}

    def _on(self, files: list[Path], part: str, domain: str) -> float:
        key = (*files, part, domain)
        if key not in self._known:
            found = evaluate(self._federation, files, {domain: self._held_out[part][domain]})
            self._known[key] = found[domain]
        return self._known[key]


def carry_out(row: str, plan: Plan, shares: Shares, folder: Path, shards: Path) -> tuple[Found, Row]:
    """Train a row in a new folder. Returns its models, and the seconds that it took.

    Args:
        row, plan: name of the row, and the common settings.
        shares: the sites' domains.
        folder: folder of the row.
        shards: folder with the prepared shards of every site.
    """
    neighbours, clock, cpu = Neighbours(), time.perf_counter(), our_seconds()
    worlds = [write(files, folder, shards) for files in stages(row, plan)]
    if row == "centralised":
        found = centralised(worlds[0].federation, plan, shares, folder)
    else:
        for world in worlds:
            file = Path(world.file)
            python_child("benchmarks.timed", str(file), str(file.with_suffix(".json")), log=folder / "timed.log")
        found = results(row, worlds, plan, folder)
    seconds = {"seconds": time.perf_counter() - clock, "cpu_seconds": our_seconds() - cpu}
    if found.tokens != plan.tokens:
        raise RuntimeError(f"{row} has trained {found.tokens:,} tokens instead of {plan.tokens:,}")
    return found, {**seconds, "others_share": neighbours.share()}


def write(files: Files, folder: Path, shards: Path) -> World:
    """Write federation files, and copy the shards to each site's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_text(yaml.safe_dump(data, sort_keys=False))
        for site in data.get("sites", []):
            shutil.copytree(shards / site["name"] / "data", folder / site["state_dir"] / "data")
    return load_world(folder / next(iter(files)))


def results(row: str, worlds: list[World], plan: Plan, folder: Path) -> Found:
    """Models, bytes and tokens of a row after its runs. The last run's models count."""
    last = worlds[-1]
    tokens = sum(models.newest_trained(world).total_tokens for world in worlds)
    sent = [models.moved(world) for world in (worlds[:-1] if row == "tuned" else worlds)]
    moved = {link: sum(one[link] for one in sent) for link in sent[0]}
    own = {} if row in WITHOUT_ROOT else models.federations(last)
    if row.startswith("ditto:"):
        leaves = personal(last.federation, plan, float(row.partition(":")[2]), folder)
        return Found(leaves, leaves, own, moved, tokens)
    trained = models.trained(last, folder / "trained")
    return Found(
        models.received(last, folder / "scratch"), trained, own, None if row == "local" else moved, tokens
    )


def personal(federation: Federation, plan: Plan, strength: float, folder: Path) -> Leaves:
    """Ditto's personal models: as many steps as the federation's, pulled to its model of each round."""
    run = run_of(federation)
    toward = [[str(path) for path in models.model_files(run, t)] for t in range(CALL * plan.rounds)]
    pull = {"strength": strength, "every": plan.steps, "models": toward}
    spec = spec_of(
        federation, site_runs(federation), plan.total, pull=pull, side_by_side=cores(), save=str(folder)
    )
    spec.run(folder, "personal")
    return {site: [folder / f"{site}.safetensors"] for site in plan.streams}


def centralised(federation: Federation, plan: Plan, shares: Shares, folder: Path) -> Found:
    """One machine with all texts: a step has the batches of all sites."""
    union = {place: share / len(shares) for run in site_runs(federation).values() for place, share in run.items()}
    changes = {"batch_size": plan.batch * len(shares), "threads": cores(), "save": str(folder)}
    done = spec_of(federation, {"central": union}, plan.total, **changes).run(folder, "central")
    files = [folder / "central.safetensors"]
    leaves = dict.fromkeys(shares, files)
    return Found(leaves, leaves, {federation.run: files}, None, done["tokens"])


def judged(found: Found, judge: Judge, plan: Plan, shares: Shares) -> Row:
    """The losses of a row: of every leaf in both states, of the root's model on all texts, of the regions'."""
    region_of = {site: region for region, sites in plan.regions.items() for site in sites}
    leaves = {
        site: {
            "region": region_of[site],
            "received": judge.loss(found.received[site], share),
            "trained": judge.loss(found.trained[site], share),
        }
        for site, share in shares.items()
    }
    own = dict(found.federations)
    root = own.pop(next(iter(own))) if own else None
    regions = {
        region: judge.mean(files, {site: shares[site] for site in plan.regions[region]})
        for region, files in own.items()
    }
    return {"leaves": leaves, "root": judge.mean(root, shares) if root else None, "regions": regions}


def settings(plan: Plan, shards: Path) -> Federation:
    """The federation of all sites, each with its state in a folder of `shards`."""
    shards.mkdir(parents=True, exist_ok=True)
    (data,) = flat(plan, "shards", CALL * plan.rounds).values()
    for site in data["sites"]:
        site["state_dir"] = site["name"]
    file = shards / "federation.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_federation(file)


def prepare(plan: Plan, shards: Path) -> None:
    """Prepare each site's shards, unless they exist."""
    from photon_core.data.prepare import prepare_site

    federation = settings(plan, shards)
    for site in plan.streams:
        if not (shards / site / "data").exists():
            prepare_site(view_of(federation, site))


def finished(row: str, seed: int, plan: Plan, losses: Row, found: Found, spent: Row) -> Row:
    """A kept row."""
    kept = {"row": row, "kind": plan.kind.name, "seed": seed, **losses, "bytes": found.moved, **spent}
    return json.loads(json.dumps(kept))
