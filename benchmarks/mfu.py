"""A site's training through Composer compared with a bare torch.compile loop, in the same run; for a GPU.

    python -m benchmarks.mfu                     # 125M and 1.3B; about 5 minutes
    python -m benchmarks.mfu --quick             # a small model on any device; not to be quoted
    python -m benchmarks.mfu --peak 989.4        # TFLOP/s of a device that is not in the list

Both train the same decoder from the same kind of initial parameters on random tokens of the preset's sequence
length, with AdamW and clipping, in bfloat16 on a GPU, in micro-batches of the same size, each in a separate
process. The site is photon_core.training.train.train as a round calls it: MDS shards, Composer, callbacks,
progress, the update at the end. The loop is written here from PyTorch's functions. Both are timed after WARM
steps, without compilation.

[vs_bare_loop: tokens/s of the site over the loop's, the smallest of all models; mfu_125m, mfu_1_3b: the site's
floating-point operations (6 N + 12 L d T for each token) over the device's peak in dense bfloat16]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import finish, gpu_name, heading, machine, python_child, say, table
from photon_core.model.cost import flops_per_token, peak_tflops
from schemas.federation import Federation
from schemas.view import view_of

CASES = {"125M": {"micro_batch": 32, "passes": 4}, "1.3B": {"micro_batch": 16, "passes": 4}}
SMALL = {"n_layers": 2, "d_model": 64, "n_heads": 2, "vocab_size": 512, "max_seq_len": 128}
WARM, STEPS = 6, 40
SITE = "site"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model; not to be quoted")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=list(CASES), help=", ".join(CASES))
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="peak of a device that is not in the list")
    arguments = parser.parse_args()
    at, gpu = machine(), gpu_name()
    if not gpu and not arguments.quick:
        sys.exit("benchmarks.mfu: no GPU here; --quick runs a small model on the processor")
    at["gpu"] = gpu
    peak = arguments.peak or peak_tflops(gpu)
    sizes = ["quick"] if arguments.quick else arguments.only or list(CASES)
    rows = [measure(size, bool(gpu), peak) for size in sizes]
    heading("MFU" + (" (quick: too small to be quoted)" if arguments.quick else ""), at, None)
    print(gpu or "no GPU")
    columns = ("model", "micro-batch", "bare loop, tokens/s", "site, tokens/s", "site / loop", "loop's MFU", "MFU")
    keys = ("model", "micro_batch", "bare", "site", "ratio", "bare_mfu", "mfu")
    table("tokens a second, after warm-up", columns, ([row[key] for key in keys] for row in rows))
    figures = {f"mfu_{row['model'].lower().replace('.', '_')}": row["mfu"] for row in rows}
    finish({"vs_bare_loop": min(row["ratio"] for row in rows), **figures, "rows": rows}, at)


def measure(size: str, gpu: bool, peak: float | None) -> Row:
    """The row of one model. It has MFU only if the peak is known."""
    with tempfile.TemporaryDirectory(prefix="photon-mfu-") as folder:
        place = Path(folder)
        federation = federation_of(size, gpu, place)
        (place / "federation.json").write_text(federation.model_dump_json())
        speed: dict[str, float] = {}
        for what in ("bare", "site"):
            say(f"{size}: {what}")
            python_child("benchmarks.mfu", what, str(place), log=place / "log")
            speed[what] = json.loads((place / f"{what}.json").read_text())
    flops = flops_per_token(federation.model)
    mfu = {what: None if peak is None else rate * flops / (peak * 1e12) for what, rate in speed.items()}
    row = {"model": size, "micro_batch": federation.local.micro_batch, **speed}
    return {**row, "ratio": speed["site"] / speed["bare"], "bare_mfu": mfu["bare"], "mfu": mfu["site"]}


def federation_of(size: str, gpu: bool, folder: Path) -> Federation:
    """A federation of one site with random shards, whose settings the bare loop also uses."""
    case = CASES.get(size, {"micro_batch": 4, "passes": 2})
    batch = case["micro_batch"] * case["passes"]
    local = {
        "steps": STEPS,
        "batch_size": batch,
        "micro_batch": case["micro_batch"],
        "device": "cuda" if gpu else "cpu",
        "precision": "amp_bf16" if gpu else "fp32",
        "compile": True,
        "evaluate": False,
        "checkpoint_steps": None,
        "optimizer": {"name": "adamw", "lr": 3e-4},
    }
    values = {
        "run": "mfu",
        "store": str(folder / "store"),
        "tokenizer": "bytes",
        "recipe": None,
        "model": SMALL if size == "quick" else {"preset": size},
        "rounds": {"count": 1},
        "local": local,
        "sites": [
            {"name": SITE, "state_dir": str(folder / SITE), "streams": [{"name": "text", "source": "none.jsonl"}]}
        ],
    }
    return Federation.model_validate(values)


def bare(federation: Federation) -> float:
    """Tokens per second of a minimal fast loop: a compiled loss, fused AdamW, no metrics."""
    import torch

    from photon_core.model.decoder import empty_decoder, next_token_loss

    local, model = federation.local, federation.model
    assert isinstance(local.micro_batch, int)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the default of a site on a processor
    decoder = empty_decoder(model, local.device)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(decoder.parameters(), local.optimizer.lr, betas=(0.9, 0.95), fused=True)
    loss_of = torch.compile(lambda tokens: next_token_loss(decoder(tokens), tokens), dynamic=False)
    passes, shape = local.batch_size // local.micro_batch, (local.micro_batch, model.max_seq_len)
    start = 0.0
    for step in range(STEPS):
        if step == WARM:
            _synchronize(local.device)
            start = time.perf_counter()
        for _ in range(passes):
            tokens = torch.randint(0, model.vocab_size, shape, device=local.device)
            with torch.autocast(local.device, torch.bfloat16, enabled=local.precision == "amp_bf16"):
                loss = loss_of(tokens)
            (loss / passes).backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    _synchronize(local.device)
    tokens_made = (STEPS - WARM) * local.batch_size * model.max_seq_len
    return float(tokens_made / (time.perf_counter() - start))


def site(federation: Federation, folder: Path) -> float:
    """Tokens per second of a site's training, from its progress reports."""
    from safetensors.numpy import save_file

    from photon_core.model.init import initial_tensor
    from photon_core.model.shapes import parameter_shapes
    from photon_core.training import callback
    from photon_core.training.job import LocalJob
    from photon_core.training.train import train

    write_shards(federation)
    theta = folder / "theta.safetensors"
    save_file(
        {name: initial_tensor(name, federation.model, 1) for name in parameter_shapes(federation.model)}, theta
    )
    seen: list[tuple[float, dict[str, Any]]] = []
    callback.REPORT_SECONDS = 0.0  # a report after every step
    job = LocalJob(view_of(federation, SITE), 1, 1, [str(theta)], "0", 0)
    train(job, lambda report: seen.append((time.perf_counter(), report)))
    (start, first), (end, last) = seen[WARM - 1], seen[-1]
    return float((last["tokens"] - first["tokens"]) / (end - start))


def write_shards(federation: Federation) -> None:
    """Write MDS shards of random tokens, as many as the steps need, and their data manifest."""
    import numpy as np
    from streaming import MDSWriter

    from photon_core.hashing import sha256_file
    from schemas.manifests import DataManifest, FileEntry, StreamData

    length, random = federation.model.max_seq_len, np.random.default_rng(0)
    sequences = STEPS * federation.local.batch_size
    folder = view_of(federation, SITE).split_dir("text", "train")
    columns = {"tokens": f"ndarray:uint16:{length}", "id": "uint32"}
    with MDSWriter(out=str(folder), columns=columns, compression="zstd", hashes=["sha256"]) as writer:
        for number in range(sequences):
            tokens = random.integers(0, federation.model.vocab_size, length, np.uint16)
            writer.write({"tokens": tokens, "id": np.uint32(number)})
    root = folder.parent.parent
    files = [
        FileEntry(path=str(path.relative_to(root)), sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
    ]
    manifest = DataManifest(
        site=SITE,
        tokenizer_sha256="",
        sequence_length=length,
        vocab_size=federation.model.vocab_size,
        train_documents=1,
        valid_documents=0,
        train_sequences=sequences,
        valid_sequences=0,
        train_tokens=sequences * length,
        valid_tokens=0,
        unigram_perplexity=1.0,
        streams={"text": StreamData(documents=1, tokens=1, source_sha256="", files=files)},
        settings_sha256="",
        versions={},
    )
    (root / "data.json").write_text(manifest.model_dump_json())


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def child(what: str, folder: Path) -> None:
    federation = Federation.model_validate_json((folder / "federation.json").read_text())
    speed = bare(federation) if what == "bare" else site(federation, folder)
    (folder / f"{what}.json").write_text(json.dumps(speed))


if __name__ == "__main__":
    if sys.argv[1:2] in (["bare"], ["site"]):
        child(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
