"""A tree of federations beside flat, local and personalised training: six sites with a domain each, two regions.

    python -m benchmarks.worldlm --keep rows.jsonl [--seeds 2] [--only flat:1 local worldlm/cosine ...]
    python -m benchmarks.worldlm --keep rows.jsonl --iid
    python -m benchmarks.worldlm --keep rows.jsonl --swap 0.5
    python -m benchmarks.worldlm --keep rows.jsonl --noise 0.5 1.0

Regions are {wikipedia_en, novels, gov_news} and {us_code, pmc_fulltext, math_word_problems}; without these texts,
six kinds of text that come with Python. All rows train the same number of tokens from the same initial model. Each
federation is a run through the command line's code, in its own process, so that a row's memory is freed. A region
trains two rounds in each round of the root, and a flat federation twice as many rounds as the root.

Rows:
    flat:F          the recipe `unlike-sites`, its local rates times F; the figures take the best on validation
    local           each site alone
    tuned           flat for three quarters of the rounds, then each site alone (fine-tuning)
    hierfavg        Liu et al. 2020, arXiv 1905.06641: a tree without key layers
    fedper          Arivazhagan et al. 2019, arXiv 1912.00818: the last blocks never leave a site
    ditto:L         Li et al. 2021, arXiv 2012.04221: flat, and a personal model of each site, pulled with
                    lambda L; the personal models' tokens come on top
    worldlm/MODE    Iacob et al. 2024, arXiv 2405.14446, with two blocks of six as key layers; `discounted` only
                    with --noise: the root lowers the weight of members with noise
    centralised     one machine with all texts (benchmarks/bare.py): steps of all sites' batches together
All but flat:0.5 and flat:2 have the recipe's own rates. `centralised` is not tuned.

A site's model is evaluated on the site's own texts: as received, from which it would train next, and as trained,
which it returned last. Choices are by the validation texts, figures by the test texts (benchmarks/splits.py).

With --swap, two sites, one of each region (novels and us_code), have that share of each other's text. With
--noise, the sites of the first region clip their updates and add noise, and keep their moments. Flat is then a
tree without key layers and with one round a call, which computes the same mean: a file has one `update` for all
sites.

[worldlm_vs_flat, worldlm_vs_flat_trained: perplexity of flat over WorldLM's, in both states; worldlm_vs_best: of
WorldLM over the best of local, flat, tuned and fedper, once all are run; iid_vs_flat: of WorldLM over flat's on
shuffled texts; root_vs_flat: of the root's model over flat's; noise_increase: of worldlm/discounted with noise
over worldlm/cosine without]
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks import worldlm_run as running
from benchmarks import worldlm_texts as texts_of
from benchmarks.common import Neighbours, machine, say
from benchmarks.six_sites import options, train_tokenizer, valid_sequences
from benchmarks.splits import PARTS, TEST_EVERY, three_splits
from benchmarks.worldlm_rows import CALL, DISCOUNT, QUICK, REMEDY, ROWS, WORLDLM, Plan, is_admitted, rows_of
from benchmarks.worldlm_tables import show
from benchmarks.worldlm_texts import NATURAL, Kind, Regions, Shares
from schemas.sections.server import Server
from schemas.sections.worldlm import WorldLM

MODEL = {"n_layers": 6, "d_model": 96, "n_heads": 4, "vocab_size": 2048, "max_seq_len": 128}
ROUNDS, STEPS, BATCH = 16, 20, 4  # of the root; of a site's round; sequences
QUICK_ROUNDS, QUICK_STEPS, QUICK_TEXTS, QUICK_SEQUENCES = 1, 4, 60, 16

Row = dict[str, Any]


def main() -> None:
    parser = options(__doc__, rounds=ROUNDS, quick="under 2 minutes: one round of the root, no result")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help=f"rows to run, in this order, of {', '.join(ROWS)}"
    )
    parser.add_argument("--seeds", type=int, default=2, help="number of runs of each row; default: 2")
    parser.add_argument("--keep", type=Path, help="file for finished rows; rows in it are not repeated")
    parser.add_argument("--iid", action="store_true", help="the texts shuffled among the sites")
    parser.add_argument("--swap", type=float, default=0.0, choices=(0.0, 0.5, 1.0), help="share of swapped texts")
    parser.add_argument(
        "--noise", nargs=2, type=float, metavar=("SIGMA", "C"), help="noise_multiplier and clip_norm of one region"
    )
    arguments = parser.parse_args()
    kind = Kind(arguments.iid, arguments.swap, tuple(arguments.noise) if arguments.noise else None)
    if sum((kind.iid, bool(kind.swap), kind.noise is not None)) > 1:
        parser.error("--iid, --swap and --noise exclude each other; write one of them")
    names = _names(parser, arguments, kind)
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-worldlm-") as name:
        setting = Setting(Path(name), arguments.data.resolve(), arguments.rounds, arguments.quick)
        rows = measure(setting, kind, names, arguments.seeds, arguments.keep)
    show(at, neighbours.share(), rows, setting.key, arguments.quick)


def _names(parser: argparse.ArgumentParser, arguments: argparse.Namespace, kind: Kind) -> Sequence[str]:
    """Rows to run. Those of settings that this version does not have are reported as not run."""
    names = rows_of(kind)
    if arguments.quick:
        arguments.rounds, arguments.seeds = QUICK_ROUNDS, 1
        names = tuple(row for row in names if row in QUICK)
    for name in arguments.only or ():
        if not is_admitted(name, kind):
            known = [row for row in (*ROWS, REMEDY) if is_admitted(row, kind)]
            parser.error(f"--only {name}: with {kind.name} texts, write rows of {', '.join(known)}")
    return [name for name in arguments.only or names if _exists(name)]


def _exists(row: str) -> bool:
    """Whether the federation file has the settings of a row."""
    try:
        WorldLM.model_validate(WORLDLM.get(row, {}))
        Server.model_validate(DISCOUNT if row == REMEDY else {})
    except ValidationError:
        say(f"{row}: not run, because the federation file has no such setting")
        return False
    return True


@dataclass
class Setting:
    """Texts, tokenizer and numbers that all rows have in common.

    Args:
        work: scratch folder.
        data: folder of the domains; text that comes with Python replaces it if it has not all of them.
        rounds: rounds of the root.
        quick: flag: short rows of two sites in each region, with the byte tokenizer.
    """

    work: Path
    data: Path
    rounds: int
    quick: bool

    @cached_property
    def _found(self) -> tuple[Path, Regions]:
        return texts_of.found(self.data, self.work / "python")

    @cached_property
    def regions(self) -> Regions:
        return {region: sites[:2] if self.quick else sites for region, sites in self._found[1].items()}

    @property
    def domains(self) -> list[str]:
        return [domain for sites in self.regions.values() for domain in sites]

    @cached_property
    def corpus(self) -> Path:
        """Folder of the three splits."""
        return three_splits(self._found[0], self.domains, self.work / "texts")

    @cached_property
    def tokenizer(self) -> str:
        if self.quick:
            return "bytes"
        say("training the tokenizer")
        path = self.work / "tokenizer.json"
        train_tokenizer(self.corpus, self.domains, path, MODEL["vocab_size"])
        return str(path)

    @property
    def model(self) -> dict[str, int]:
        return MODEL | ({"vocab_size": 257} if self.quick else {})

    @property
    def steps(self) -> int:
        return QUICK_STEPS if self.quick else STEPS

    @property
    def key(self) -> dict[str, Any]:
        """Values that must be equal for kept rows to be comparable."""
        tokens = CALL * self.rounds * self.steps * BATCH * self.model["max_seq_len"] * len(self.domains)
        key = {"tokens": tokens, "rounds": self.rounds, "calls": CALL, "steps": self.steps, "batch": BATCH}
        regions = {region: list(members) for region, members in self.regions.items()}
        return key | {"model": self.model, "regions": regions, "test_every": TEST_EVERY}

    def plan(self, kind: Kind, seed: int) -> tuple[Plan, Shares, Path]:
        """What the rows of a kind and seed have in common; the sites' domains; the folder of their shards."""
        shares = texts_of.shares(self.regions, kind)
        folder, most = self.work / kind.text.name, QUICK_TEXTS if self.quick else None
        streams = texts_of.streams(self.corpus, shares, folder, most)
        plan = Plan(self.tokenizer, self.model, self.rounds, self.steps, BATCH, self.regions, streams, kind, seed)
        return plan, shares, folder / f"shards-{seed}"

    @cached_property
    def judge(self) -> running.Judge:
        """Evaluates on the held-out sequences of every domain."""
        plan, _, shards = self.plan(NATURAL, 0)
        federation = running.settings(plan, shards)
        most = QUICK_SEQUENCES if self.quick else None
        held_out = {
            part: {
                domain: valid_sequences(federation, self.corpus / domain / f"{part}.jsonl.gz")[:most]
                for domain in self.domains
            }
            for part in PARTS
        }
        return running.Judge(federation, held_out)


def measure(setting: Setting, kind: Kind, names: Sequence[str], seeds: int, keep: Path | None) -> list[Row]:
    """Run the missing rows of a kind. Returns all kept rows of the setting, of every kind."""
    lines = keep.read_text("utf-8").splitlines() if keep and keep.exists() else []
    rows = [row for row in map(json.loads, lines) if row["setting"] == setting.key]
    there = {(row["row"], row["kind"], row["seed"]) for row in rows}
    commit = machine()["commit"]
    for seed in range(seeds):
        for name in names:
            if (name, kind.name, seed) in there:
                continue
            row = measure_row(setting, kind, name, seed)
            rows.append({**row, "commit": commit, "setting": setting.key})
            if keep:
                with keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    order = {name: number for number, name in enumerate((*ROWS, REMEDY))}
    return sorted(rows, key=lambda row: (row["kind"] != NATURAL.name, row["kind"], order[row["row"]], row["seed"]))


def measure_row(setting: Setting, kind: Kind, name: str, seed: int) -> Row:
    """Train and evaluate one row."""
    plan, shares, shards = setting.plan(kind, seed)
    say(f"{kind.name}, seed {seed}: preparing")
    running.prepare(plan, shards)
    say(f"{kind.name}, seed {seed}: {name}")
    folder = Path(tempfile.mkdtemp(prefix="row-", dir=setting.work))  # a new one: runs are cached by their folder
    found, spent = running.carry_out(name, plan, shares, folder, shards)
    row = running.finished(name, seed, plan, running.judged(found, setting.judge, plan, shares), found, spent)
    shutil.rmtree(folder)
    return row


if __name__ == "__main__":
    main()
