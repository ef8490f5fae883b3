"""The rows of benchmarks.worldlm: the federation files of each. That module names their sources."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.worldlm_texts import NATURAL, Kind, Regions
from schemas.presets import RECIPES

RECIPE = "unlike-sites"  # pinned: the default may change
CALL = 2  # rounds of a region in one round of the root
FINE = 0.25  # share of the rounds of row `tuned` in which each site trains alone
VALIDATION = 0.05  # share of a site's documents, for its evaluations in the run
FIRST_STORE, WORLD = "flat", "world"

FLAT = ("flat:1", "flat:0.5", "flat:2")  # factors of the recipe's local rates
DITTO = ("ditto:0.1", "ditto:1", "ditto:0.01")  # lambda
WORLDLM: dict[str, dict[str, Any]] = {
    "worldlm/cosine": {},
    "worldlm/auto": {"temperature": "auto"},
    "worldlm/dot": {"attention": "dot"},
    "worldlm/mean": {"attention": "mean"},
    "worldlm/no-residuals": {"residuals": "off"},
}
HIER = "hierfavg"
REMEDY = "worldlm/discounted"  # worldlm/cosine whose root lowers the weights of members with noise
DISCOUNT: dict[str, Any] = {"discount_noise": True}
ALONE: dict[str, Any] = {  # every parameter is a site's own
    "key_layers": ["wte", "wpe", "blocks", "norm_f"],
    "temperature": 0,
    "residuals": "off",
}
FEDPER: dict[str, Any] = {"key_layers": 0.3, "temperature": 0, "residuals": "off", "weights": "tokens"}
# The most telling first.
ROWS = (FLAT[0], "local", "fedper", "worldlm/cosine", "worldlm/auto", "worldlm/mean", "worldlm/no-residuals",
        "tuned", "centralised", *FLAT[1:], HIER, "worldlm/dot", *DITTO)  # fmt: skip
SHORT = (FLAT[0], "worldlm/cosine", "worldlm/auto", "fedper")  # of other texts than the natural ones
NOISY = (FLAT[0], "worldlm/cosine", REMEDY)
QUICK = (FLAT[0], "fedper", "worldlm/cosine")

Files = dict[str, dict[str, Any]]  # name of a federation file -> its values; the root's is the first


@dataclass(frozen=True)
class Plan:
    """What all rows have in common.

    Args:
        tokenizer, model: values of the federation file.
        rounds: rounds of the root; a flat run has CALL times as many.
        steps, batch: local steps of a site's round, and sequences of a step.
        regions: region -> its sites.
        streams: site -> its streams.
        kind: the texts, and the noise.
        seed: number of the run, from 0.
    """

    tokenizer: str
    model: Mapping[str, int]
    rounds: int
    steps: int
    batch: int
    regions: Regions
    streams: Mapping[str, list[dict[str, Any]]]
    kind: Kind = NATURAL
    seed: int = 0

    @property
    def total(self) -> int:
        """Local steps of a site."""
        return CALL * self.rounds * self.steps

    @property
    def tokens(self) -> int:
        """Trained tokens of all sites."""
        return self.total * self.batch * self.model["max_seq_len"] * len(self.streams)

    def common(self, factor: float = 1.0) -> dict[str, Any]:
        """Sections that all files have. `factor`: of the recipe's local rates."""
        optimizer = RECIPES[RECIPE]({})["local"]["optimizer"]
        return {
            "tokenizer": self.tokenizer,
            "seed": 17 + self.seed,
            "recipe": RECIPE,
            "model": dict(self.model),
            "local": {
                "steps": self.steps,
                "batch_size": self.batch,
                "device": "cpu",
                "evaluate": False,
                "optimizer": {key: factor * optimizer[key] for key in ("lr", "matrix_lr")},
                "schedule": {"total_steps": self.total},
            },
            "data": {"validation_share": VALIDATION, "evaluation_sequences": 32},
        }

    def sites(self, run: str, names: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """Section `sites` of a file, with these sites; all by default."""
        return [
            {"name": site, "state_dir": f"sites/{run}/{site}", "streams": self.streams[site]}
            for site in names or self.streams
        ]


def rows_of(kind: Kind) -> tuple[str, ...]:
    """Rows of a kind, unless others are named. On shuffled texts flat also has the best of its rates."""
    if kind.noise:
        return NOISY
    if kind.iid:
        return (*SHORT, *FLAT[1:])
    return SHORT if kind.swap else ROWS


def is_admitted(row: str, kind: Kind) -> bool:
    """Whether a row can have this kind: one file has one `update`, so only rows of regions have noise in one."""
    return row in ((FLAT[0], HIER, *WORLDLM, REMEDY) if kind.noise else ROWS)


def stages(row: str, plan: Plan) -> list[Files]:
    """The federations of a row, which run one after the other. That of `centralised` only gives its settings."""
    name, _, number = row.partition(":")
    whole = CALL * plan.rounds
    if row in WORLDLM:
        return [tree(plan, {"key_layers": 0.3, **WORLDLM[row]})]
    if row == REMEDY:
        return [tree(plan, {"key_layers": 0.3}, server=DISCOUNT)]
    if row == HIER:
        return [tree(plan, {"key_layers": 0, "weights": "tokens"}, server={"optimizer": "fedavg", "lr": 1.0})]
    if name == "flat" and plan.kind.noise:
        return [tree(plan, {"key_layers": 0, "weights": "tokens"}, calls=1)]
    if name in ("flat", "ditto", "centralised"):
        return [flat(plan, FIRST_STORE, whole, factor=float(number or 1) if name == "flat" else 1.0)]
    if row == "tuned":
        first = int((1 - FINE) * whole)
        return [flat(plan, FIRST_STORE, first), fine_tuning(plan, first, whole - first)]
    return [flat(plan, row, whole, worldlm={"local": ALONE, "fedper": FEDPER}[row])]


def flat(
    plan: Plan, run: str, rounds: int, *, worldlm: dict[str, Any] | None = None, factor: float = 1.0
) -> Files:
    """A federation of all sites."""
    data = {
        "run": run,
        "store": f"stores/{run}",
        **plan.common(factor),
        "rounds": {"count": rounds, "report_every": None},
        "sites": plan.sites(run),
    }
    return {f"{run}.yaml": data | ({} if worldlm is None else {"worldlm": worldlm})}


def fine_tuning(plan: Plan, before: int, rounds: int) -> Files:
    """Each site trains alone, from the flat model after `before` rounds, at the rates of the schedule there."""
    done = before / (before + rounds)
    rate = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2  # of the recipe's cosine, which ends at 0.1
    files = flat(plan, "tuned", rounds, worldlm=ALONE, factor=rate)
    (data,) = files.values()
    data["start"] = {"run": FIRST_STORE, "store": f"stores/{FIRST_STORE}"}
    data["local"]["schedule"] = {"warmup_steps": 0, "alpha": 0.1 / rate, "total_steps": rounds * plan.steps}
    return files


def tree(plan: Plan, worldlm: dict[str, Any], *, calls: int = CALL, server: dict[str, Any] | None = None) -> Files:
    """A root with the regions as members.

    Args:
        worldlm: section of every file.
        calls: rounds of a region in one round of the root.
        server: section of the root, over the recipe's.
    """
    root = {
        "run": WORLD,
        "store": f"stores/{WORLD}",
        **plan.common(),
        "rounds": {"count": CALL * plan.rounds // calls, "report_every": None},
        "worldlm": worldlm,
        "federations": [{"name": region, "federation": f"{region}.yaml"} for region in plan.regions],
    }
    files = {f"{WORLD}.yaml": root | ({"server": server} if server else {})}
    for region, sites in plan.regions.items():
        data = files[f"{region}.yaml"] = {
            "run": region,
            "store": f"stores/{region}",
            "parent": {"store": f"stores/{WORLD}", "run": WORLD, "member": region},
            **plan.common(),
            "rounds": {"report_every": None},
            "worldlm": {**worldlm, "rounds": calls},
            "sites": plan.sites(region, sites),
        }
        if plan.kind.noise and region == next(iter(plan.regions)):
            sigma, clip = plan.kind.noise
            data["update"] = {"clip_norm": clip, "noise_multiplier": sigma}
            data["local"]["optimizer_state"] = "keep"  # averaged moments would leave the sites without noise
    return files
