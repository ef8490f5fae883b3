"""Cost of federating six sites with six kinds of text: federated and centralised training at equal tokens.

    python -m benchmarks.six_sites [--data ../shared/data] [--quick]

Each domain is a site, through the command line's code: a small BPE trained from the training texts, preparation,
rounds with Prefect, Composer and the store. Centralised training is one Composer run over the union of the same
shards, every domain in its share of the federation, from the same initial model, with the same number of tokens:
the same number of steps, each over one batch of every site (as in data-parallel training of the six), with its own
learning rate. Both models are then evaluated in the same way on the test texts (benchmarks/splits.py), on which
neither trains [perplexity_ratio: the federation's over the centralised, perplexity of a token, of the mean loss
over the six domains].
"""

import argparse
import gzip
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bare import site_runs, spec_of
from benchmarks.common import ROOT, Neighbours, cores, finish, heading, machine, python_child, say, table
from benchmarks.splits import three_splits
from schemas.view import view_of

VOCABULARY = 2048
BPE_CHARACTERS = 1_500_000  # characters of each domain for training the tokenizer
VALID_SEQUENCES = 256  # sequences of each domain, spread evenly over its held-out file
CENTRAL_LR = 4e-3

FILE = """\
run: six-sites
store: store
tokenizer: tokenizer.json
recipe: null
seed: 17
model: {{n_layers: 3, d_model: 160, n_heads: 5, vocab_size: 2048, max_seq_len: 128}}
rounds: {{count: {rounds}, deadline: 1h}}
local:
  steps: {steps}
  batch_size: 8
  device: cpu
  optimizer: {{name: adamw, lr: 4.0e-3}}
  schedule: {{name: cosine, warmup_steps: {warmup}, alpha: 0.1}}
server: {{optimizer: nesterov, lr: 0.7, momentum: 0.6}}
data: {{evaluation_sequences: 16, validation_share: 0.02}}
sites:
"""
SITE = "  - {{name: {name}, state_dir: sites/{name}, streams: [{{name: text, source: {source}}}]}}\n"


def main() -> None:
    parser = options(__doc__, rounds=120, quick="under 2 minutes: two short rounds, no result")
    arguments = parser.parse_args()
    if not (domains := domains_of(arguments.data)):
        return
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-six-") as name:
        work = Path(name)
        rounds, steps = (2, 5) if arguments.quick else (arguments.rounds, 10)
        text = FILE.format(rounds=rounds, steps=steps, warmup=min(50, rounds * steps // 4))
        result = measure(work, arguments.data.resolve(), domains, text)
    show(at, neighbours.share(), result, quick=arguments.quick)


def measure(work: Path, data: Path, domains: list[str], text: str) -> dict[str, Any]:
    """Do both trainings and evaluate them."""
    from photon_core.data.prepare import prepare_site
    from schemas.reading.load import load_federation

    data = three_splits(data, domains, work / "texts")
    say("training the tokenizer")
    train_tokenizer(data, domains, work / "tokenizer.json")
    file = work / "federation.yaml"
    sites = (SITE.format(name=domain, source=data / domain / "train.jsonl.gz") for domain in domains)
    file.write_text(text + "".join(sites))
    federation = load_federation(file)
    for domain in domains:
        say(f"preparing {domain}")
        prepare_site(view_of(federation, domain))
    total = federation.local.steps * federation.rounds.count

    say(f"federation: {federation.rounds.count} rounds of {federation.local.steps} steps at six sites")
    start = time.perf_counter()
    python_child("benchmarks.timed", str(file), str(work / "timed.json"), log=work / "timed.log")
    federated_s = time.perf_counter() - start

    union = {folder: 1 / len(domains) for run in site_runs(federation).values() for folder in run}
    batch = federation.local.batch_size * len(domains)
    say(f"centralised: {total} steps of {batch} sequences")
    start = time.perf_counter()
    changes = {"batch_size": batch, "lr": CENTRAL_LR, "save": str(work), "threads": cores()}
    central = spec_of(federation, {"central": union}, total, **changes).run(work, "central")
    central_s = time.perf_counter() - start

    timed = json.loads((work / "timed.json").read_text())
    last = timed["rounds"][-1]
    assert last["total_tokens"] == central["tokens"], "the two did not train on the same number of tokens"
    held_out = {domain: valid_sequences(federation, data / domain / "test.jsonl.gz") for domain in domains}
    return {
        "federation": federation,
        "tokens": last["total_tokens"],
        "federated": evaluate(federation, federated_model(federation), held_out),
        "central": evaluate(federation, [work / "central.safetensors"], held_out),
        "federated_s": federated_s,
        "central_s": central_s,
        "curve": [round_["metrics"].get("perplexity") for round_ in timed["rounds"][1:]],
        "sent": sum(update["bytes"] for round_ in timed["rounds"] for update in round_["updates"].values()),
    }


def options(about: str | None, *, rounds: int | None, quick: str) -> argparse.ArgumentParser:
    """Options of every benchmark on the folder of domains: --data, --rounds, --quick."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0] if about else None)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the domains")
    default = f"; default: {rounds}" if rounds else ""
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds of the federation{default}")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def domains_of(data: Path) -> list[str]:
    """The domains in a folder. If there are none, prints what is missing, also on the last line."""
    domains = sorted(path.parent.name for path in data.glob("*/train.jsonl.gz"))
    if not domains:
        print(f"skipped: {data} has no <domain>/train.jsonl.gz; write --data with such a folder")
        print(json.dumps({"skipped": "no data"}))
    return domains


def texts(path: Path) -> Iterator[str]:
    """The documents of one corpus file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def train_tokenizer(data: Path, domains: list[str], path: Path, vocabulary: int = VOCABULARY) -> None:
    """Train a byte-level BPE on the same amount of each domain's training texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def sample() -> Iterator[str]:
        for domain in domains:
            taken = 0
            for text in texts(data / domain / "train.jsonl.gz"):
                yield text
                taken += len(text)
                if taken > BPE_CHARACTERS:
                    break

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    tokenizer.save(str(path))


def valid_sequences(federation: Any, path: Path) -> Any:
    """VALID_SEQUENCES of a held-out file, packed as at the sites; int64 (n, T)."""
    import numpy as np

    from photon_core.data.tokenizer import load_tokenizer

    tokenizer, length = load_tokenizer(federation.tokenizer), federation.model.max_seq_len
    parts = [np.append(ids, tokenizer.eot) for ids in tokenizer.encode_batch(list(texts(path)))]
    ids = np.concatenate(parts).astype(np.int64)
    packed = ids[: len(ids) // length * length].reshape(-1, length)
    return packed[np.arange(min(VALID_SEQUENCES, len(packed))) * len(packed) // min(VALID_SEQUENCES, len(packed))]


def federated_model(federation: Any) -> list[Path]:
    """Files of the latest committed model."""
    from photon_core.run.run import run_of

    run = run_of(federation)
    latest = run.latest()
    assert latest is not None
    manifest = run.round(latest)
    assert manifest is not None
    folder = Path(run.store.url) / run.files_dir(latest)
    return [folder / entry.path for entry in manifest.model]


def evaluate(federation: Any, files: list[Path], held_out: dict[str, Any]) -> dict[str, float]:
    """Mean loss per predicted token in nats, by domain."""
    import torch
    from safetensors.torch import load_file

    from photon_core.model.decoder import load_decoder, next_token_loss

    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    tensors = {name.removeprefix("decoder."): tensor for name, tensor in tensors.items()}
    device = "cuda" if federation.local.device == "cuda" else "cpu"
    decoder = load_decoder(federation.model, tensors).eval().to(device)
    losses = {}
    with torch.inference_mode():
        for domain, sequences in held_out.items():
            tokens = torch.from_numpy(sequences).to(device)
            parts = [float(next_token_loss(decoder(part), part)) * len(part) for part in tokens.split(32)]
            losses[domain] = sum(parts) / len(tokens)
    return losses


def show(at: dict[str, Any], others: float | None, result: dict[str, Any], *, quick: bool) -> None:
    """Print the table, then the last line."""
    federation, federated, central = result["federation"], result["federated"], result["central"]
    heading("Six domains, one a site" + (" (quick: too short to mean anything)" if quick else ""), at, others)
    local, rounds = federation.local, federation.rounds.count
    server, sequences = federation.server, local.batch_size * len(federated)
    print(
        f"{result['tokens']:,} tokens each; {rounds} rounds of {local.steps} steps of {local.batch_size} "
        f"sequences of {federation.model.max_seq_len} tokens a site, AdamW lr {local.optimizer.lr:g}, "
        f"{server.optimizer} {server.lr:g}/{server.momentum:g}\n"
        f"centralised: {rounds * local.steps} steps of {sequences} sequences, AdamW lr {CENTRAL_LR:g}"
    )
    print(f"federated {result['federated_s']:.0f} s, centralised {result['central_s']:.0f} s, including imports")

    def mean(losses: dict[str, float]) -> float:
        return math.exp(sum(losses.values()) / len(losses))

    rows: list[tuple[Any, ...]] = [
        (domain, math.exp(central[domain]), math.exp(loss), math.exp(loss - central[domain]))
        for domain, loss in federated.items()
    ]
    ratio = mean(federated) / mean(central)
    rows.append(("all six (mean loss)", mean(central), mean(federated), ratio))
    table("Perplexity of a token on held-out text", ("domain", "centralised", "federated", "ratio"), rows)
    figures = {
        "perplexity_ratio": round(ratio, 4),
        "perplexity_federated": round(mean(federated), 3),
        "perplexity_centralised": round(mean(central), 3),
        "by_domain": {row[0]: [round(float(value), 3) for value in row[1:]] for row in rows[:-1]},
        "tokens": result["tokens"],
        "rounds": rounds,
        "fewer_synchronisations": local.steps,
        "bytes_sent": result["sent"],
        "federated_s": round(result["federated_s"], 1),
        "centralised_s": round(result["central_s"], 1),
        "perplexity_by_round": [round(value, 2) for value in result["curve"] if value],
        "others_share": others,
        "quick": quick,
    }
    finish(figures, at)


if __name__ == "__main__":
    main()
