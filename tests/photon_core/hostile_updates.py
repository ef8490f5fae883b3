"""A round with two honest sites and a hostile one, once for every hostile update; run as a process of its own.

    python -m tests.photon_core.hostile_updates STORE [ENDPOINT]

Prints a JSON line for every case: what became of the round, and the peak of the resident memory so far, in MiB
beyond that of the same round without a hostile site.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from photon_core.candidate import Course, aggregate_round, commit
from photon_core.errors import PhotonError
from photon_core.hashing import sha256_bytes
from photon_core.layout import Run, model_sha256
from photon_core.shard_writer import ShardWriter
from photon_core.store import Store
from photon_core.tensors import make_header, tensor_bytes
from photon_core.update import lossless
from photon_core.update.codec import get_codec
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest

HONEST = ("a", "c")
EVIL = "b"
FOLDER = f"run/rounds/000001/sites/{EVIL}/0001"
THETA = {
    "blocks.0.w": np.linspace(-1, 1, 40_000, dtype=np.float32).reshape(200, 200),
    "wte": np.ones(8, np.float32),
}
FEDERATION = Federation.model_validate(
    {
        "run": "run", "recipe": None, "store": "unused", "tokenizer": "bytes",
        "model": {"n_layers": 1, "d_model": 8, "n_heads": 1, "vocab_size": 257, "max_seq_len": 16},
        "rounds": {"count": 3, "quorum": 2}, "local": {"steps": 6, "batch_size": 4, "device": "cpu"},
        "sites": [
            {"name": s, "streams": [{"name": "s", "source": "x.txt"}], "steps": 5 if s == EVIL else None}
            for s in (*HONEST, EVIL)
        ],
    }
)  # fmt: skip


@dataclass
class Update:
    """What the hostile site puts into the store: the shard's bytes, and the manifest as a mapping."""

    store: Store
    manifest: dict[str, Any]
    shard: bytes

    @property
    def file(self) -> dict[str, Any]:
        return self.manifest["files"][0]

    def reshard(self, data: bytes) -> None:
        """Other bytes, with a manifest that fits them."""
        self.shard = data
        self.file.update(sha256=sha256_bytes(data), blake3="", bytes=len(data))

    def header(self, body: bytes, claimed: int | None = None) -> None:
        length = len(body) if claimed is None else claimed
        self.reshard(length.to_bytes(8, "little") + body + self.shard[self.data_start :])

    @property
    def data_start(self) -> int:
        return 8 + int.from_bytes(self.shard[:8], "little")


def _values(value: float) -> Callable[[Update], None]:
    def change(u: Update) -> None:
        theta = THETA["blocks.0.w"].reshape(-1)[:1]
        u.reshard(
            u.shard[: u.data_start]
            + lossless.encode(theta, np.float32([value])).tobytes()
            + u.shard[u.data_start + 4 :]
        )

    return change


def _codec(name: str, fill: bytes) -> Callable[[Update], None]:
    """The whole update in another codec, every byte of its blocks as given."""

    def change(u: Update) -> None:
        codec = get_codec(name)
        tensors = {n: TensorEntry(dtype=codec.dtype, shape=codec.shape(a.shape)) for n, a in THETA.items()}
        header = make_header(tensors)
        size = sum(tensor_bytes(tensor) for tensor in tensors.values())
        u.reshard(header + (fill * size)[:size])
        u.manifest["codec"] = name
        u.file["tensors"] = {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in tensors.items()}

    return change


def _set(**changes: Any) -> Callable[[Update], None]:
    return lambda u: u.manifest.update(changes)


def _file(**changes: Any) -> Callable[[Update], None]:
    return lambda u: u.file.update(changes)


def _tensor(**changes: Any) -> Callable[[Update], None]:
    return lambda u: u.file["tensors"]["wte"].update(changes)


def _raw(make: Callable[[], bytes]) -> Callable[[Update], None]:
    """A manifest that is these bytes."""
    return lambda u: u.manifest.update(raw=make)


def _nodes(count: int) -> bytes:
    return b'{"wte":' + b"[" * count + b"]" * count + b"}"


def _huge_file(u: Update) -> None:
    """A terabyte, without the disk noticing."""
    path = Path(u.store.url) / FOLDER / "huge.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(u.shard)
    os.truncate(path, 1 << 40)
    u.file.update(path=path.name, bytes=1 << 40)


def _place(make: Callable[[Path], None], name: str) -> Callable[[Update], None]:
    """Something else than a plain file, on a shared disk."""

    def change(u: Update) -> None:
        path = Path(u.store.url) / FOLDER / name
        path.parent.mkdir(parents=True)
        make(path)
        if name == "update.json":
            u.manifest.clear()
        else:
            u.file.update(path=name)

    return change


CASES: dict[str, tuple[Callable[[Update], None], str]] = {
    "10^18 tokens": (_set(tokens=10**18), "tokens: Input should be less than or equal to 9007199254740992"),
    "one token too many": (_set(tokens=321), "claims 321 trained tokens"),
    "no tokens": (_set(tokens=0), "claims 0 trained tokens"),
    "negative tokens": (_set(tokens=-(10**30)), "tokens: Input should be greater than or equal to 0"),
    "tokens of 3000 digits": (
        _set(tokens=10**3000),
        "tokens: Input should be less than or equal to 9007199254740992",
    ),
    "tokens of 9000 digits": (
        _raw(lambda: b'{"tokens":1' + b"0" * 9000 + b"}"),
        "is not a manifest",
    ),
    "one step too many": (_set(steps=6), "claims 6 trained steps; at most 5"),
    "too many steps": (_set(steps=10**12), "claims 1000000000000 trained steps; at most 5"),
    "more tokens than its steps": (_set(steps=4), "claims 320 tokens in 4 local steps; at most 256 are possible"),
    "no loss": (_set(metrics={}), "no train_loss"),
    "loss is NaN": (
        _set(metrics={"train_loss": float("nan")}),
        "metrics.train_loss: Input should be a finite number",
    ),
    "endless loss": (
        _set(metrics={"train_loss": 1.0, "x": float("inf")}),
        "metrics.x: Input should be a finite number",
    ),
    "many metrics": (_set(metrics={"train_loss": 1.0} | {f"m{n}": 0.0 for n in range(1001)}), "1002 metrics"),
    "endless names of metrics": (
        _set(metrics={"train_loss": 1.0} | {f"{n:0900d}": 0.0 for n in range(900)}),
        "of 900 characters; a name is printable and has at most 100",
    ),
    "metric with a hostile name": (
        _set(metrics={"train_loss": 1.0, "\x1b[2J": 0.0}),
        "metric '?[2J...",
    ),
    "wrong base": (_set(base_sha256="e" * 64), "starts from model eeeeeeeeeeeeeeee"),
    "wrong previous": (_set(previous_sha256="e" * 64), "follows another manifest"),
    "another site's": (_set(site="a"), "speaks of run, round, site, attempt ('run', 1, 'a', 1)"),
    "unknown codec": (_set(codec="\x1b[2Jpickle"), "codec '?[2Jpickle' is not known"),
    "codec without its block": (_set(codec="int8"), "codec 'int8' is not known"),
    "codec of endless blocks": (
        _set(codec="int8:1" + "0" * 1000),
        "codec: String should have at most 200 characters",
    ),
    "another codec's tensors": (_set(codec="int8:256"), "has shape [200, 200], the model's in codec int8:256 is"),
    "endless scale": (_codec("int8:256", b"\x00\x00\x80\x7f"), "holds NaN or Inf"),
    "scale that is NaN": (_codec("int4:256", b"\xff"), "holds NaN or Inf"),
    "bfloat16 that is not finite": (_codec("bfloat16", b"\x80\x7f"), "holds NaN or Inf"),
    "huge scale": (_codec("int8:256", b"\x7f"), "holds NaN or Inf"),
    "indices out of their block": (_codec("topk:16:4", b"\x11"), "do not ascend within their block"),
    "one index many times": (_codec("topk:256:16", b"\x01"), "do not ascend within their block"),
    "unknown key": (_set(evil=1), "is not a manifest: evil"),
    "no manifest": (_raw(lambda: b"\x80\x04cos\nsystem\n"), "is not a manifest"),
    "deep manifest": (_raw(lambda: b"[" * 900_000), "is not a manifest"),
    "deep metrics": (_raw(lambda: b'{"metrics":' + b'{"a":' * 150_000), "is not a manifest"),
    "huge manifest": (_raw(lambda: b" " * (80 << 20)), "bytes; at most"),
    "many files": (
        lambda u: u.manifest.update(files=[{**u.file, "path": f"{n}", "tensors": {}} for n in range(50_000)]),
        "bytes; at most",
    ),
    "..": (_file(path="../../a/0001/x"), "is not a path inside the store"),
    "absolute path": (_file(path="/etc/passwd"), "'/etc/passwd' is not a path inside the store"),
    "backslashes": (_file(path="..\\..\\x"), "is not a path inside the store"),
    "NUL in a path": (_file(path="x\0.safetensors"), "is not a path inside the store"),
    "line break in a path": (_file(path="x\n2026 INFO all is well"), "is not a path inside the store"),
    "endless path": (_file(path="x" * 100_000), "path: String should have at most 4000 characters"),
    "long name": (_file(path="x" * 256), "is not a path inside the store"),
    "missing file": (_file(path="gone"), "gone is missing"),
    "no hash": (_file(sha256="../../x"), "has no sha256 or blake3"),
    "wrong hash": (_file(blake3="0" * 64), "does not have the blake3"),
    "wrong sha256": (_file(sha256="0" * 64, blake3=""), "does not have the sha256"),
    "blake3 is a path": (_file(blake3="../../x"), "has no sha256 or blake3"),
    "rows missing": (_tensor(rows=[0, 7]), "do not hold all rows of tensor 'wte'"),
    "rows from the middle": (_tensor(rows=[1, 8]), "are not the next ones"),
    "rows backwards": (_tensor(rows=[8, 0]), "are not the next ones"),
    "rows of 3000 digits": (
        _tensor(rows=[0, 10**3000]),
        "rows.1: Input should be less than or equal to 9007199254740992",
    ),
    "huge size": (_file(bytes=10**15), "has 1000000000000000 bytes, but its tensors have 160032"),
    "negative size": (_file(bytes=-1), "bytes: Input should be greater than or equal to 0"),
    "tensor missing": (lambda u: u.file["tensors"].pop("wte"), "has no tensor 'wte'"),
    "tensor with a hostile name": (
        lambda u: u.file["tensors"].update({"\x1b]0;evil\n": {"dtype": "I32", "shape": [1]}}),
        "the model has no tensor '?]0;evil?'",
    ),
    "tensor twice": (lambda u: u.manifest["files"].append(u.file), "is in two files"),
    "other shape": (_tensor(shape=[4, 2]), "'wte' has shape [4, 2], the model's is [8]"),
    "huge shape": (_tensor(shape=[10**15]), "'wte' has shape [1000000000000000]"),
    "shape of 3000 digits": (
        _tensor(shape=[10**3000]),
        "shape.0: Input should be less than or equal to 9007199254740992",
    ),
    "endless shape": (_tensor(shape=[1] * 100_000), "shape: Tuple should have at most 16 items"),
    "other dtype": (_tensor(dtype="F32"), "'wte' is F32"),
    "truncated": (lambda u: u.__dict__.update(shard=u.shard[:-100]), "ends before byte"),
    "emptied": (lambda u: u.__dict__.update(shard=b""), "no safetensors file"),
    "longer": (lambda u: u.__dict__.update(shard=u.shard + b"x"), "bytes; its manifest says"),
    "one bit": (
        lambda u: u.__dict__.update(shard=u.shard[:-9] + bytes([u.shard[-9] ^ 1]) + u.shard[-8:]),
        "does not have the blake3",
    ),
    "header of 2^63 bytes": (lambda u: u.header(b"{}", 2**63), "its header claims 9223372036854775808 bytes"),
    "huge header": (lambda u: u.header(b" " * (7 << 20)), "has 7500072 bytes, but its tensors have 160032"),
    "deep header": (lambda u: u.header(_nodes(30_000)), "the header is not JSON"),
    "header is no JSON": (lambda u: u.header(b"\xff" * 99), "the header is not JSON"),
    "header of other tensors": (
        lambda u: u.reshard(make_header({"x": TensorEntry(dtype="I8", shape=(len(u.shard),))}) + u.shard),
        "holds other tensors than its manifest says",
    ),
    "offsets beyond the file": (
        lambda u: u.header(b'{"wte":{"dtype":"I32","shape":[8],"data_offsets":[99999999,100000031]}}'),
        "starts at byte",
    ),
    "NaN": (_values(float("nan")), "'blocks.0.w' holds NaN or Inf"),
    "Inf": (_values(float("-inf")), "'blocks.0.w' holds NaN or Inf"),
}
ON_DISK: dict[str, tuple[Callable[[Update], None], str]] = {
    "a file of 1 TiB": (_huge_file, "has 1099511627776 bytes, but its tensors have 160032"),
    "a pipe": (_place(os.mkfifo, "pipe"), "pipe is not a plain file"),
    "a link to a device": (_place(lambda p: p.symlink_to("/dev/zero"), "zero"), "zero is a link"),
    "a link out of the store": (_place(lambda p: p.symlink_to("/etc/hostname"), "out"), "out is a link"),
    "the manifest is a pipe": (_place(os.mkfifo, "update.json"), "update.json is not a plain file"),
    "the manifest is a folder": (_place(Path.mkdir, "update.json"), "update.json is not a plain file"),
    "the manifest is endless": (_place(lambda p: p.symlink_to("/dev/zero"), "update.json"), "is a link"),
}


def shard(store: Store, folder: str, arrays: dict[str, Any], dtype: str) -> FileEntry:
    tensors = {name: TensorEntry(dtype=dtype, shape=array.shape) for name, array in arrays.items()}
    with ShardWriter(store, folder, "", tensors) as writer:
        for name in writer.order:
            writer.write(name, arrays[name].reshape(-1))
        return writer.close()[0]


def make_round(store: Store) -> Run:
    """Round 0, and the honest sites' updates for round 1."""
    run = Run(store, "run")
    model = [shard(store, run.round_dir(0), THETA, "F32")]
    run.commit_round(
        RoundManifest(
            run="run", round=0, model_sha256=model_sha256(model), model=model, federation_sha256="", created="",
            versions={},
        )
    )  # fmt: skip
    for number, site in enumerate(HONEST):
        run.commit_update(honest_update(run, site, np.float32(0.01 * (number + 1))))
    return run


def honest_update(run: Run, site: str, step: np.float32) -> UpdateManifest:
    base = run.round(0)
    assert base
    changes = {name: lossless.encode(theta, theta + step) for name, theta in THETA.items()}
    return UpdateManifest(
        run="run", round=1, site=site, attempt=1, base_sha256=base.model_sha256, codec="float32",
        files=[shard(run.store, run.site_dir(1, site, 1), changes, "I32")],
        tokens=320, steps=5, metrics={"train_loss": 1.0}, data_sha256="", versions={},
        previous_sha256=run.round_sha256(0),
    )  # fmt: skip


def attack(run: Run, change: Callable[[Update], None]) -> None:
    manifest = honest_update(run, EVIL, np.float32(0.5)).model_dump(mode="json")
    store, path = run.store, manifest["files"][0]["path"]
    update = Update(store, manifest, store.read(f"{FOLDER}/{path}"))
    store.discard(f"{FOLDER}/{path}")
    if store.is_local:
        (Path(store.url) / FOLDER).rmdir()
    change(update)
    if not manifest:
        return
    store.create(f"{FOLDER}/{path}", update.shard)
    raw = manifest.get("raw")
    store.create(f"{FOLDER}/update.json", raw() if raw else _json(manifest))


def _json(manifest: dict[str, Any]) -> bytes:
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(manifest).encode()
    finally:
        sys.set_int_max_str_digits(4300)


def finish(run: Run) -> dict[str, Any]:
    """The round as the flow makes it, with all three sites sampled."""
    sampled = sorted((*HONEST, EVIL))
    candidate = aggregate_round(run, FEDERATION, 1, sampled, {})
    manifest = commit(run, FEDERATION, candidate, Course(sampled))
    assert Run(run.store, "run").latest() == 1
    return {"sites": sorted(manifest.updates), "left_out": manifest.left_out, "model": manifest.model_sha256}


def peak() -> float:
    """High-water mark of this process's resident memory, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(url: str, endpoint: str = "") -> None:
    options = {"endpoint_url": endpoint} if endpoint else {}
    cases = CASES if endpoint else CASES | ON_DISK

    def outcome(number: int, change: Callable[[Update], None]) -> dict[str, Any]:
        run = make_round(Store(f"{url}/{number}", **options))
        if change is not _nothing:
            attack(run, change)
        _forget_peak()
        try:
            return finish(Run(run.store, "run"))
        except PhotonError as error:
            return {"error": str(error)}

    honest = outcome(0, _nothing)
    before = peak()
    print(json.dumps({"case": "honest", **honest, "mib": before}))
    for number, (case, (change, _)) in enumerate(cases.items(), 1):
        found = outcome(number, change)
        print(json.dumps({"case": case, **found, "mib": peak() - before}))


def _nothing(update: Update) -> None:
    pass


def _forget_peak() -> None:
    """Start the high-water mark anew: making the attack cost memory of its own."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(*sys.argv[1:])
