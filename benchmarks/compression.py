"""Savings and cost of each update codec: bytes per round against perplexity, and speed.

    python -m benchmarks.compression [--data ../shared/data] [--rounds 24] [--only int3 ...] [--recipe R] [--quick]

The same small federation of real texts runs once with every codec, with the same data, seed, initial model and
steps, so that every difference comes from the codec. Each site trains as in a round, in a child process, from its
private state (error feedback included). Updates go through the store, and the coordinator aggregates them in its
one pass. Only Prefect, which moves no bytes, is not used. Speed is that of encoding and decoding a change of 32
million parameters on one core, in GB of float32 parameters per second [bytes_factor: float32 parameters' bytes
over the update's; perplexity_increase against float32; both of the codec that sends least at under 1 % higher
perplexity]. With --recipe the sites use a recipe, such as the default unlike-sites, which also sends averaged
moments.
"""

import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Neighbours, cores, finish, heading, machine, say, table
from benchmarks.federate import federate, source
from benchmarks.six_sites import domains_of, evaluate, federated_model, options, train_tokenizer, valid_sequences
from benchmarks.splits import three_splits
from schemas.view import view_of

CODECS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"codec": "bfloat16"},
    "float16": {"codec": "float16"},
    "int8": {"codec": "int8"},
    "int4": {"codec": "int4"},
    "int3": {"codec": "int3"},
    "topk 3/16": {"codec": "topk", "top_k": 0.1875},
    "topk 1/8": {"codec": "topk", "top_k": 0.125},
    "topk 1/16": {"codec": "topk", "top_k": 0.0625},
    "topk 1/32": {"codec": "topk", "top_k": 0.03125},
    "topk 1/64 of 4096": {"codec": "topk", "top_k": 1 / 64, "block": 4096},
    "topk 1/16, no feedback": {"codec": "topk", "top_k": 0.0625, "error_feedback": False},
    "int4, model in bfloat16": {"codec": "int4", "model_dtype": "bfloat16"},
}
MOMENTS = {  # codecs of recipes that average moments
    "float32, moments in bfloat16": {"moments_dtype": "bfloat16"},
    "int3, moments in bfloat16": {"codec": "int3", "moments_dtype": "bfloat16"},
}
QUICK = ("float32", "int4", "int3", "topk 1/16")
LIMIT = 0.01  # largest relative increase of perplexity of the best codec
SPEED_ELEMENTS = 32_000_000

FEDERATION: dict[str, Any] = {
    "run": "compression",
    "store": "store",
    "tokenizer": "tokenizer.json",
    "recipe": None,
    "model": {"n_layers": 3, "d_model": 160, "n_heads": 5, "vocab_size": 2048, "max_seq_len": 128},
    "rounds": {"count": 24},
    "local": {
        "steps": 30,
        "batch_size": 4,
        "device": "cpu",
        "optimizer": {"lr": 4e-3},
        "schedule": {"warmup_steps": 50, "alpha": 0.1},
    },
    "server": {"optimizer": "nesterov", "lr": 0.7, "momentum": 0.6},
    "data": {"validation_share": 0.02},
}


def main() -> None:
    parser = options(
        __doc__, rounds=FEDERATION["rounds"]["count"], quick="under a minute: two short rounds, no result"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="CODEC", choices=CODECS | MOMENTS, help="codecs to run beside float32"
    )
    parser.add_argument("--recipe", help="training recipe; default: AdamW and Nesterov momentum")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: the warm-up alone takes two rounds; write more")
    names = ("float32", *arguments.only) if arguments.only else QUICK if arguments.quick else tuple(CODECS)
    if not (domains := domains_of(arguments.data)):
        return
    at, neighbours = machine(), Neighbours()
    with tempfile.TemporaryDirectory(prefix="photon-compression-") as name:
        data, rounds, quick = arguments.data.resolve(), arguments.rounds, arguments.quick
        values = FEDERATION | {"rounds": {"count": rounds}}
        if arguments.recipe:
            local = {key: FEDERATION["local"][key] for key in ("steps", "batch_size", "device", "schedule")}
            values |= {"recipe": arguments.recipe, "local": local, "server": {}}
        rows = measure(Path(name), data, domains, values, names, quick=quick)
    show(at, neighbours.share(), rows, quick=arguments.quick)


def measure(
    work: Path, data: Path, domains: list[str], values: dict[str, Any], names: tuple[str, ...], *, quick: bool
) -> list[dict[str, Any]]:
    """A row for each named codec, float32 first. `values`: values of the federation file."""
    from photon_core.data.prepare import prepare_site
    from photon_core.jobs.launcher import Launcher
    from photon_core.training.entry import PRELOAD
    from schemas.federation import Federation

    if quick:
        domains = domains[:2]
    data = three_splits(data, domains, work / "texts")
    if quick:
        model = {**FEDERATION["model"], "vocab_size": 257}
        local = {**values["local"], "steps": 4, "schedule": {}}
        values = values | {"rounds": {"count": 2}, "tokenizer": "bytes", "model": model, "local": local}
    else:
        say("training the tokenizer")
        train_tokenizer(data, domains, work / "tokenizer.json")
        values = values | {"tokenizer": str(work / "tokenizer.json")}

    def federation(number: int, update: dict[str, Any]) -> Federation:
        sites = [
            {
                "name": domain,
                "state_dir": str(work / str(number) / domain),
                "streams": [{"name": "text", "source": str(source(work, data, domain, quick=quick))}],
            }
            for domain in domains
        ]
        store = str(work / f"store-{number}")
        return Federation.model_validate({**values, "store": store, "update": update, "sites": sites})

    chosen = {name: (CODECS | MOMENTS)[name] for name in dict.fromkeys(names)}
    first = federation(0, {})
    rows = []
    with Launcher(cores(), preload=PRELOAD) as launcher:
        launcher.warm()
        for domain in domains:
            say(f"preparing {domain}")
            prepare_site(view_of(first, domain))
        held_out = {domain: valid_sequences(first, data / domain / "test.jsonl.gz") for domain in domains}
        for number, (name, update) in enumerate(chosen.items()):
            say(name)
            setting = federation(number, update)
            for domain in domains if number else ():
                shutil.copytree(work / "0" / domain / "data", work / str(number) / domain / "data")
            run = federate(setting, launcher, work)
            losses = evaluate(setting, federated_model(setting), held_out)
            rows.append({"codec": name, **sent(setting, run), **speed(setting, quick=quick)})
            rows[-1]["perplexity"] = math.exp(sum(losses.values()) / len(losses))
            say(f"  perplexity {rows[-1]['perplexity']:.2f}, {rows[-1]['factor']:.2f} times fewer bytes")
            shutil.rmtree(work / f"store-{number}")
    for row in rows:
        row["increase"] = row["perplexity"] / rows[0]["perplexity"] - 1
    return rows


def sent(federation: Any, run: Any) -> dict[str, Any]:
    """Bytes of an update and of a sent model in the last round, and the number of the guard's interventions."""
    manifest = run.round(federation.rounds.count)
    parameters = sum(math.prod(t.shape) for entry in manifest.model for t in entry.tensors.values())
    bytes_ = sum(update.bytes for update in manifest.updates.values()) / len(manifest.updates)
    return {
        "bytes": bytes_,
        "factor": 4 * parameters / bytes_,
        "download": sum(entry.bytes for entry in manifest.download or manifest.model),
        "tokens": manifest.total_tokens,
        "guard": sum(found.lowered for r in range(manifest.round + 1) if (found := run.round(r))),
    }


def speed(federation: Any, *, quick: bool) -> dict[str, float]:
    """GB of float32 parameters encoded and decoded per second, the best of three."""
    import numpy as np

    from photon_core.update.codecs.registry import Lossless, get_codec

    count = SPEED_ELEMENTS // (16 if quick else 1)
    codec = get_codec(federation.update.codec_name)
    theta = np.random.default_rng(0).standard_normal(count, np.float32)
    change = 1e-3 * np.random.default_rng(1).standard_normal(count, np.float32)
    theta_k, out, best = theta + change, np.empty_like(theta), {"encode": 0.0, "decode": 0.0}
    piece = 1 << 17  # as the coordinator decodes
    for _ in range(3):
        start = time.perf_counter()
        encoded = codec.encode(theta, theta_k) if isinstance(codec, Lossless) else codec.encode(change)
        middle = time.perf_counter()
        for at in range(0, count, piece):
            end = min(at + piece, count)
            codec.decode(theta[at:end], encoded[codec.position(at) : codec.position(end)], out[at:end])
        done = time.perf_counter()
        best["encode"] = max(best["encode"], theta.nbytes / 1e9 / (middle - start))
        best["decode"] = max(best["decode"], theta.nbytes / 1e9 / (done - middle))
    return best


def show(at: dict[str, Any], others: float | None, rows: list[dict[str, Any]], *, quick: bool) -> None:
    """Print the table, then the last line."""
    heading("Codecs of updates" + (" (quick: too short to mean anything)" if quick else ""), at, others)
    columns = ("codec", "bytes an update", "x fewer", "model sent", "perplexity", "against float32 %",
               "encode GB/s", "decode GB/s", "guard")  # fmt: skip
    table(
        f"{rows[0]['tokens']:,} tokens each",
        columns,
        [
            (
                row["codec"], round(row["bytes"]), row["factor"], row["download"], row["perplexity"],
                100 * row["increase"], row["encode"], row["decode"], row["guard"],
            )
            for row in rows
        ],
    )  # fmt: skip
    good = [row for row in rows if row["increase"] < LIMIT]
    best = max(good, key=lambda row: row["factor"])
    finish(
        {
            "bytes_factor": round(best["factor"], 2),
            "perplexity_increase": round(best["increase"], 5),
            "best": best["codec"],
            "rows": [{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
            "others_share": others,
            "quick": quick,
        },
        at,
    )


if __name__ == "__main__":
    main()
