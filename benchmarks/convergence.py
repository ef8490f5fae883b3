"""Recipes compared with centralised training at equal tokens: does a federation learn as well as one machine?

    python -m benchmarks.convergence [--only unlike-sites photon/iid ...] [--seeds 3] [--keep rows.jsonl]
    python -m benchmarks.convergence --tune central-adamw central-muon --keep rows.jsonl
    python -m benchmarks.convergence --size 30M          # or 125M: on a GPU

Compared are six sites with one domain each (natural), or with a sixth of every domain each (iid), and one machine
with all text, which synchronises after every step. All train on the same number of tokens from the same initial
model. Curves and choices use the validation texts; reported figures use the test texts (benchmarks/splits.py).
Sites train as in a round, in child processes, from their private state. Updates go through the store, and the
coordinator aggregates and commits them. Only Prefect, which changes no number, is not used.

Centralised training is a plain Composer loop (benchmarks.bare) over the union of the natural sites' shards, every
domain in the same share. Its batch and rate are the best on validation of four batch sizes and three rates
(`--tune`): tokens are equal, so that a smaller batch has more steps, and rates grow with the square root of the
batch. In the pictures, its bytes are those of a ring all-reduce of float32 gradients over six machines. A
federation's bytes are updates, models and averaged moments, to and from all sites.

The recipes are those of schemas/presets.py at this scale: optimizers, moments and server are unchanged. Local
steps, batch and schedule are the same for all, so that all synchronise equally often and have equal tokens. So
Photon's schedule is not stretched beyond the run, and local rates are those that probes found for this model
(NOTES.md): the central rate with plain averaging, half of it under a server momentum of 0.9. For the larger models
AdamW's rates are an eighth, as in an earlier probe of 29 M parameters; they are not tuned.

At equal wall-clock, by the plan's model (photon_core/hardware/exchange.py): sites exchange through one server, the
centralised machines by ring all-reduce, all over links of 1 Gbit/s. A local step takes as long as on one core
here, or no time, as on an accelerator that is fast compared with its links.

[perplexity_ratio_natural, perplexity_ratio_iid: perplexity of a token, of the mean loss over the domains, the
recipe's over the better centralised one's; perplexity_ratio_wall_clock: the first at equal wall-clock, if a step
takes no time, _paid if it takes its time; sync_reduction; of the recipe `unlike-sites`]
"""

import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.bare import site_runs, spec_of
from benchmarks.common import Neighbours, cores, gpu_name, machine, our_seconds, say
from benchmarks.convergence_picture import draw
from benchmarks.convergence_rows import CENTRAL, QUICK, RATES, ROWS, central_setting, grid
from benchmarks.convergence_tables import show, show_tuning
from benchmarks.federate import federate, source
from benchmarks.six_sites import domains_of, evaluate, options, texts, train_tokenizer, valid_sequences
from benchmarks.splits import PARTS, TEST_EVERY, three_splits
from schemas.federation import Federation
from schemas.view import view_of

STEPS, WARMUP = 20, 30
POINTS = 8  # points of a curve
VALIDATION = {"": 0.02, "natural": 0.02, "iid": 0.05}  # a sixth of a small domain must fill a sequence
PIECE = 4000  # characters: for iid, longer texts are split into such pieces
QUICK_TEXTS, QUICK_SEQUENCES = 60, 16
Row = dict[str, Any]
# Kept rows contain "curve" (tokens, bytes, validation perplexity), "test" and "test_by_domain".
LARGER = {"vocab_size": 8192, "max_seq_len": 512}


@dataclass(frozen=True)
class Size:
    """A model and the size of its training.

    Args:
        model: section `model` of the federation file.
        rounds: number of rounds of STEPS local steps.
        batch: sequences of a site's step.
        device: device of the training: cpu, or cuda.
        scale: factor of AdamW's rates.
    """

    model: dict[str, int]
    rounds: int
    batch: int
    device: str = "cpu"
    scale: float = 1.0


SIZES = {
    "1M": Size({"n_layers": 4, "d_model": 128, "n_heads": 4, "vocab_size": 2048, "max_seq_len": 128}, 48, 4),
    "30M": Size(LARGER | {"n_layers": 8, "d_model": 512, "n_heads": 8}, 40, 16, "cuda", 1 / 8),
    "125M": Size(LARGER | {"n_layers": 16, "d_model": 768, "n_heads": 12}, 80, 32, "cuda", 1 / 8),
}


def main() -> None:
    parser = options(__doc__, rounds=None, quick="under a minute: two short rounds, no result")
    parser.add_argument("--size", choices=SIZES, default="1M", help="parameters; above 1M a GPU is necessary")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help=f"rows to run, in this order, of {', '.join(ROWS)}; a recipe's name means both of its rows",
    )
    parser.add_argument("--tune", nargs="+", choices=CENTRAL, help="rows to run at all batch sizes and rates")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs of each row")
    parser.add_argument("--keep", type=Path, help="file for finished rows; rows in it are not repeated")
    parser.add_argument("--picture", type=Path, help="SVG file for the curves")
    arguments = parser.parse_args()
    if not (domains := domains_of(arguments.data)):
        return
    names = QUICK if arguments.quick else ROWS
    for name in arguments.only or ():
        if not any(name in (row, row.split("/")[0]) for row in ROWS):
            parser.error(f"--only {name}: not one of {', '.join((*ROWS, *RATES))}")
    if arguments.only:
        names = tuple(dict.fromkeys(r for name in arguments.only for r in ROWS if name in (r, r.split("/")[0])))
    if arguments.tune:
        names = tuple(row for name in arguments.tune for row in grid(name))
    size = SIZES["1M" if arguments.quick else arguments.size]
    size = replace(size, rounds=arguments.rounds or size.rounds)
    if size.device == "cuda" and not gpu_name():
        sys.exit(f"benchmarks.convergence: --size {arguments.size} needs a GPU; write --size 1M")
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-convergence-") as folder:
        setting = Setting(Path(folder), arguments.data.resolve(), domains, size, arguments.quick)
        rows = measure(setting, names, arguments.seeds, arguments.keep)
    if arguments.picture:
        draw(rows, (*CENTRAL, *RATES), arguments.picture)
    (show_tuning if arguments.tune else show)(at, neighbours.share(), rows, setting)


class Setting:
    """Settings common to all rows: texts, tokenizer, model, numbers of rounds, steps and tokens."""

    def __init__(self, work: Path, data: Path, domains: list[str], size: Size, quick: bool) -> None:
        self.work, self.size, self.quick = work, size, quick
        self.domains = domains[:2] if quick else domains
        self.data = three_splits(data, self.domains, work / "texts")
        self.rounds, self.steps = (2, 4) if quick else (size.rounds, STEPS)
        self.total = self.rounds * self.steps
        self.tokens = self.total * size.batch * len(self.domains) * size.model["max_seq_len"]
        every = max(1, self.rounds // POINTS)
        self.marks = [t for t in range(1, self.rounds + 1) if t == self.rounds or t % every == 0]
        self.held_out: dict[str, dict[str, Any]] = {}

    @property
    def key(self) -> dict[str, Any]:
        """Values that must be equal for kept rows to be comparable."""
        key = {"tokens": self.tokens, "rounds": self.rounds, "domains": self.domains, "model": self.size.model}
        return key | {"test_every": TEST_EVERY}

    def begin(self) -> None:
        """Make the tokenizer and the held-out sequences."""
        if not self.quick:
            say("training the tokenizer")
            vocabulary = self.size.model["vocab_size"]
            train_tokenizer(self.data, self.domains, self.work / "tokenizer.json", vocabulary)
        federation = self.federation("central-adamw", 0, self.work)
        most = QUICK_SEQUENCES if self.quick else None
        for part in PARTS:
            paths = {domain: self.data / domain / f"{part}.jsonl.gz" for domain in self.domains}
            self.held_out[part] = {d: valid_sequences(federation, path)[:most] for d, path in paths.items()}

    def federation(self, row: str, seed: int, folder: Path) -> Federation:
        """The federation of a row. That of a centralised row has its settings and its shards."""
        recipe, _, kind = row.partition("/")
        central = row.split(":")[0] in CENTRAL
        local: dict[str, Any] = {
            "steps": self.steps,
            "batch_size": self.size.batch,
            "device": self.size.device,
            "evaluate": False,
            "schedule": {"name": "cosine", "warmup_steps": min(WARMUP, self.total // 4), "alpha": 0.1},
        }
        if self.size.device == "cuda":
            local["precision"] = "amp_bf16"
        optimizer: dict[str, Any] = {"lr": RATES[recipe]} if not central else {}
        if central:
            name, batch, factor = central_setting(row)
            optimizer = dict(CENTRAL[name])
            for rate in {"lr", "matrix_lr"} & optimizer.keys():
                optimizer[rate] *= factor * math.sqrt(batch)
        local["optimizer"] = optimizer | {"lr": self.size.scale * optimizer["lr"]}
        return Federation.model_validate(
            {
                "run": "convergence",
                "store": str(folder / "store"),
                "seed": 17 + seed,
                "tokenizer": "bytes" if self.quick else str(self.work / "tokenizer.json"),
                "recipe": None if central else recipe,
                "model": self.size.model,
                "rounds": {"count": self.rounds},
                "local": local,
                "data": {"validation_share": VALIDATION[kind]},
                "sites": [
                    {"name": d, "state_dir": str(folder / d), "streams": self._streams(d, kind)}
                    for d in self.domains
                ],
            }
        )

    def _streams(self, site: str, kind: str) -> list[dict[str, Any]]:
        if kind != "iid":
            return [{"name": "text", "source": str(source(self.work, self.data, site, quick=self.quick))}]
        share = 1 / len(self.domains)
        return [
            {"name": d, "source": str(self._dealt(d) / f"{site}.jsonl"), "proportion": share} for d in self.domains
        ]

    def _dealt(self, domain: str) -> Path:
        """Folder of a file for every site, with its share of the domain's shuffled texts."""
        import numpy as np

        folder = self.work / "dealt" / domain
        if not folder.exists():
            folder.mkdir(parents=True)
            some = itertools.islice(
                texts(self.data / domain / "train.jsonl.gz"), QUICK_TEXTS if self.quick else None
            )
            pieces = [text[i : i + PIECE] for text in some for i in range(0, len(text), PIECE)]
            pieces = [piece for piece in pieces if piece.strip()]
            order = np.random.default_rng(0).permutation(len(pieces))
            for number, site in enumerate(self.domains):
                mine = (json.dumps({"text": pieces[i]}) + "\n" for i in order[number :: len(self.domains)])
                (folder / f"{site}.jsonl").write_text("".join(mine), "utf-8")
        return folder

    def prepared(self, row: str, seed: int) -> Federation:
        """The row's federation with its shards, which are prepared once for every seed and kind."""
        from photon_core.data.prepare import prepare_site

        kind = row.partition("/")[2] or "natural"
        shards, folder = self.work / f"{kind}-{seed}", self.work / f"row-{seed}"
        for domain in self.domains:
            if not (shards / domain).exists():
                say(f"preparing {domain}, {kind}, seed {seed}")
                prepare_site(view_of(self.federation(row, seed, shards), domain))
            shutil.copytree(shards / domain / "data", folder / domain / "data")
        return self.federation(row, seed, folder)

    def perplexity(self, federation: Federation, files: list[Path], part: str) -> tuple[float, dict[str, float]]:
        """Perplexity of the mean loss over the domains, and of each domain, on one of PARTS."""
        losses = evaluate(federation, files, self.held_out[part])
        return math.exp(mean(losses.values())), {domain: math.exp(loss) for domain, loss in losses.items()}


def measure(setting: Setting, names: tuple[str, ...], seeds: int, keep: Path | None) -> list[Row]:
    """A row for every name and seed, including those that are already kept."""
    lines = keep.read_text("utf-8").splitlines() if keep and keep.exists() else []
    kept = [row for row in map(json.loads, lines) if row["setting"] == setting.key]
    rows = [row for row in kept if row["seed"] < seeds and row["row"] in names]
    there = {(row["row"], row["seed"]) for row in rows}
    todo = [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in there]
    commit = machine()["commit"]
    if todo:
        setting.begin()
    for name, seed in todo:
        federation = setting.prepared(name, seed)
        say(f"{name}, seed {seed}")
        clock, cpu = time.perf_counter(), our_seconds()
        found = federated(setting, federation) if "/" in name else centralised(setting, federation, name)
        spent = {"seconds": time.perf_counter() - clock, "cpu_seconds": our_seconds() - cpu}
        rows.append({"row": name, "seed": seed, **found, **spent, "commit": commit, "setting": setting.key})
        shutil.rmtree(setting.work / f"row-{seed}")
        if keep:
            with keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return sorted(rows, key=lambda row: (names.index(row["row"]), row["seed"]))


def centralised(setting: Setting, federation: Federation, row: str) -> Row:
    """Train on one machine: the same number of tokens, in steps over a batch of all sites' text."""
    from photon_core.model.shapes import parameter_shapes

    folder, sites = setting.work, len(setting.domains)
    union = {part: 1 / sites for run in site_runs(federation).values() for part in run}
    _, share, _ = central_setting(row)
    batch, steps = round(share * setting.size.batch * sites), round(setting.total / share)
    marks = [round(t * setting.steps / share) for t in setting.marks]
    changes: dict[str, Any] = {"device": setting.size.device, "threads": cores(), "batch_size": batch}
    changes |= {"warmup_steps": round(federation.local.schedule.warmup_steps / share), "schedule_steps": steps}
    changes |= {"save": str(folder), "save_after": marks}
    done = spec_of(federation, {"central": union}, steps, **changes).run(folder, "central")
    assert done["tokens"] == setting.tokens, "the two did not train on the same number of tokens"
    gradients = 4 * sum(math.prod(shape) for shape in parameter_shapes(federation.model).values())
    curve = []
    for step in marks:
        perplexity, _ = setting.perplexity(federation, [folder / f"central-{step}.safetensors"], "valid")
        curve.append((setting.tokens * step // steps, 2 * (sites - 1) * gradients * step, perplexity))
    test, by_domain = setting.perplexity(federation, [folder / f"central-{steps}.safetensors"], "test")
    return {"curve": curve, "test": test, "test_by_domain": by_domain, "synchronisations": steps}


def federated(setting: Setting, federation: Federation) -> Row:
    """Run all rounds of the federation, and evaluate its model every few rounds."""
    from photon_core.jobs.launcher import Launcher
    from photon_core.training.entry import PRELOAD

    curve: list[tuple[int, int, float]] = []
    found: dict[str, Any] = {}
    sent = 0

    def after(run: Any, manifest: Any) -> None:
        nonlocal sent
        base = run.round(manifest.round - 1)
        fetched = sum(entry.bytes for entry in (*(base.download or base.model), *base.moments))
        sent += len(manifest.updates) * fetched + sum(update.bytes for update in manifest.updates.values())
        if manifest.round in setting.marks:
            folder = Path(run.store.url) / run.files_dir(manifest.round)
            files = [folder / entry.path for entry in manifest.model]
            perplexity, _ = setting.perplexity(federation, files, "valid")
            curve.append((manifest.total_tokens, sent, perplexity))
            say(f"  round {manifest.round}: {perplexity:.1f}")
            if manifest.round == setting.rounds:
                found["test"], found["test_by_domain"] = setting.perplexity(federation, files, "test")

    with Launcher(cores(), preload=PRELOAD) as launcher:
        launcher.warm()
        federate(federation, launcher, setting.work, after)
    assert curve[-1][0] == setting.tokens, "the two did not train on the same number of tokens"
    return {"curve": curve, **found, "synchronisations": setting.rounds}


if __name__ == "__main__":
    main()
