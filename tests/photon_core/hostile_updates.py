"""Rounds with two honest sites and a hostile one, a round for every hostile update; run as a separate process.

    python -m tests.photon_core.hostile_updates MODE STORE [ENDPOINT]

Prints a JSON line for every case: what became of the round, and the peak of the resident memory so far, in MiB
beyond that of the first round. As root it drops the right to read files without permission.
"""

import ctypes
import json
import math
import posixpath
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from photon_core.aggregation.candidate import RoundLog
from photon_core.aggregation.commit import commit
from photon_core.aggregation.download import write_rounded
from photon_core.aggregation.round import aggregate_round
from photon_core.data.tokenizer import load_tokenizer
from photon_core.evidence.trackers import tracked
from photon_core.model.shapes import moment_shapes
from photon_core.run.provenance import federation_sha256
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from photon_core.tensors.shards import shard_plan
from photon_core.tensors.writer import ShardWriter
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, RunManifest, TensorEntry, UpdateManifest
from schemas.sections.model import Model
from tests.photon_core.hostile_cases import CASES, EVIL, HONEST, MODEL, ON_DISK, SHAPES, THETA, Update, wild

MLFLOW = re.compile(r"[/\w.\- ]*")  # names of metrics that it takes, if they are paths without . and ..


class Mode(NamedTuple):
    """How a round is made: what an attack may meet."""

    dtype: str = "float32"  # of the model that sites fetch
    moments: bool = False  # averaged
    tree: bool = False
    remote: bool = False

    @property
    def name(self) -> str:
        return f"{self.dtype}-{'moments' if self.moments else 'plain'}-{'tree' if self.tree else 'flat'}"


MODES = {  # every pair of choices is in one of them
    "float32, flat, on a disk": Mode(),
    "bfloat16, moments, tree, on a disk": Mode("bfloat16", moments=True, tree=True),
    "float32, moments, tree, on S3": Mode(moments=True, tree=True, remote=True),
    "bfloat16, tree, on S3": Mode("bfloat16", tree=True, remote=True),
    "bfloat16, moments, flat, on S3": Mode("bfloat16", moments=True, remote=True),
}


def settings(mode: Mode, store: str, count: int, **storage: Any) -> dict[str, Any]:
    """The federation file of a mode."""
    return {
        "run": "run", "recipe": None, "store": store, "tokenizer": "bytes", "model": MODEL,
        "rounds": {"count": count, "quorum": 2}, "storage": storage,
        "local": {"steps": 6, "batch_size": 4, "device": "cpu", "optimizer": {"name": "adamw"},
                  **({"optimizer_state": "average"} if mode.moments else {})},
        "update": {"model_dtype": mode.dtype},
        "aggregation": {"tree_above": 2, "fan_out": 2} if mode.tree else {},
        "sites": [
            {"name": s, "streams": [{"name": "s", "source": "x.txt"}], "steps": 5 if s == EVIL else None}
            for s in (*HONEST, EVIL)
        ],
    }  # fmt: skip


def shard(store: Store, folder: str, arrays: dict[str, Any], dtype: str) -> FileEntry:
    tensors = {name: TensorEntry(dtype=dtype, shape=array.shape) for name, array in arrays.items()}
    with ShardWriter(store, folder, "", shard_plan(tensors)) as writer:
        for name in writer.order:
            writer.write(name, arrays[name].reshape(-1))
        return writer.close()[0]


def make_run(store: Store, federation: Federation, mode: Mode) -> Run:
    """The run with its round 0."""
    run = Run(store, "run")
    birth = RunManifest(
        run="run", created="2026-01-01T00:00:00+00:00", federation=federation.model_dump(mode="json"),
        federation_sha256=federation_sha256(federation), tokenizer_sha256=load_tokenizer("bytes").sha256,
        versions={},
    )  # fmt: skip
    run.create_run(birth)
    model = [shard(store, run.round_dir(0), THETA, "F32")]
    rounded = write_rounded(run, 0, model, 1 << 20) if mode.dtype == "bfloat16" else []
    run.commit_round(
        RoundManifest(
            run="run", round=0, model_sha256=model_sha256(model), model=model, federation_sha256="", created="",
            download=rounded, versions={},
        )
    )  # fmt: skip
    return run


def honest_update(run: Run, t: int, site: str, mode: Mode) -> UpdateManifest:
    """One that changes nothing: whatever the model is after the round, the hostile site has done it."""
    base, folder = run.round(t - 1), run.site_dir(t, site, 1)
    assert base
    nothing = {name: np.zeros(shape, np.int32) for name, shape in SHAPES.items()}
    moments = {
        name: np.full(shape, 1e-3, np.float32)
        for name, shape in moment_shapes(Model.model_validate(MODEL), "adamw").items()
    }
    return UpdateManifest(
        run="run", round=t, site=site, attempt=1, base_sha256=base.model_sha256, codec="float32",
        base_dtype="BF16" if mode.dtype == "bfloat16" else "F32",
        files=[shard(run.store, folder, nothing, "I32")],
        moments=[shard(run.store, folder, moments, "F32")] if mode.moments else [],
        tokens=320, steps=5, metrics={"train_loss": 1.0, "tokens_per_second": 10.0, "seconds": 32.0},
        data_sha256="", versions={}, previous_sha256=run.round_sha256(t - 1),
    )  # fmt: skip


def attack(run: Run, t: int, mode: Mode, change: Callable[[Update], None], site: str = EVIL) -> None:
    manifest = honest_update(run, t, site, mode).model_dump(mode="json")
    store, folder = run.store, run.site_dir(t, site, 1)
    entries = [*manifest["files"], *manifest["moments"]]
    path = manifest["files"][0]["path"]
    update = Update(store, manifest, store.read(f"{folder}/{path}"), folder)
    kept = {entry["path"]: store.read(f"{folder}/{entry['path']}") for entry in entries[1:]}
    for entry in entries:
        store.discard(f"{folder}/{entry['path']}")
    if store.is_local:
        (Path(store.url) / folder).rmdir()
    change(update)
    if not manifest:
        return
    store.create(f"{folder}/{path}", update.shard)
    for name, data in kept.items():
        store.create(f"{folder}/{name}", data)
    raw = manifest.get("raw")
    store.create(f"{folder}/update.json", raw() if raw else _json(manifest))


def _json(manifest: dict[str, Any]) -> bytes:
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(manifest).encode()
    finally:
        sys.set_int_max_str_digits(4300)


def finish(run: Run, federation: Federation, t: int) -> dict[str, Any]:
    """The round as in the flow, with all three sites sampled, including what trackers get."""
    sampled = sorted((*HONEST, EVIL))
    before = run.round(t - 1)
    candidate = aggregate_round(run, federation, t, sampled, {})
    scores = {site: {"loss": 5.0, "perplexity": math.exp(5.0), "tokens": 100.0} for site in HONEST}
    round_log = RoundLog(sampled, scores, {EVIL: "excluded"}, {"sites": 1.0, "aggregate": 0.5}, opened=time.time())
    manifest = commit(run, federation, candidate, round_log)
    assert Run(run.store, "run").latest() == t
    told = tracked(manifest)
    assert all(map(math.isfinite, told.values()))
    assert all(map(MLFLOW.fullmatch, told)) and all(posixpath.normpath(name) == name for name in told)
    same = before is not None and manifest.model_sha256 == before.model_sha256
    return {"sites": sorted(manifest.updates), "left_out": manifest.left_out, "same": same}


def peak() -> float:
    """High-water mark of this process's resident memory, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Reset the high-water mark."""
    Path("/proc/self/clear_refs").write_text("5")


def obey_permissions() -> None:
    """Root reads every file, whatever its mode: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH it does not."""
    libc, header, data = (
        ctypes.CDLL(None, use_errno=True),
        (ctypes.c_uint32 * 2)(0x20080522),
        (ctypes.c_uint32 * 6)(),
    )
    if libc.capget(header, data) == 0:
        data[0] &= ~0b110
        assert libc.capset(header, data) == 0, ctypes.get_errno()


def cases_of(name: str) -> dict[str, tuple[Callable[[Update], None], str]]:
    """A mode's cases, in the order of its rounds: all on a disk; on S3, where rounds cost more, each in one."""
    if not MODES[name].remote:
        return CASES | ON_DISK
    remote = [name for name, mode in MODES.items() if mode.remote]
    return dict(list(CASES.items())[remote.index(name) :: len(remote)])


def main(name: str, url: str, endpoint: str = "") -> None:
    mode = MODES[name]
    obey_permissions()
    storage = {"endpoint_url": endpoint} if endpoint else {}
    cases = {"honest": (lambda u: u.manifest.update(steps=6), ""), "wild": (wild, ""), **cases_of(name)}
    federation = Federation.model_validate(settings(mode, url, len(cases), **storage))
    run, before = make_run(Store(url, **storage), federation, mode), 0.0
    for t, (case, (change, _)) in enumerate(cases.items(), 1):
        for site in HONEST:
            run.commit_update(honest_update(run, t, site, mode))
        attack(run, t, mode, change)
        forget_peak()  # the attack's preparation needed memory, too
        try:
            found = finish(Run(run.store, "run"), federation, t)
        except Exception as error:
            print(json.dumps({"case": case, "error": f"{type(error).__name__}: {error}"}))
            raise
        before = before or peak()
        print(json.dumps({"case": case, **found, "mib": peak() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
