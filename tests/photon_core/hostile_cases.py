"""What a hostile site may put into the store for a round, and the words with which the round refuses it."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from photon_core.hashing import sha256_bytes
from photon_core.model.shapes import parameter_shapes
from photon_core.store.store import Store
from photon_core.tensors.container import make_header, tensor_bytes
from photon_core.update.codecs import lossless
from photon_core.update.codecs.registry import get_codec
from schemas.manifests import TensorEntry
from schemas.sections.model import Model

HONEST = ("a", "c")
EVIL = "b"
BIG, SMALL = "wte.weight", "norm_f.bias"  # the model's largest tensor, and one of 8 elements
MODEL = {"n_layers": 1, "d_model": 8, "n_heads": 1, "vocab_size": 257, "max_seq_len": 16}
SHAPES = parameter_shapes(Model.model_validate(MODEL))
THETA = {
    name: np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape) for name, shape in SHAPES.items()
}


@dataclass
class Update:
    """What the hostile site puts into the store: the shard's bytes, and the manifest as a mapping."""

    store: Store
    manifest: dict[str, Any]
    shard: bytes
    folder: str

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
        """Its first element is one of the largest tensor's."""
        header = json.loads(u.shard[8 : u.data_start])
        at = u.data_start + header[BIG]["data_offsets"][0]
        theta = np.float32([-1.0])
        u.reshard(u.shard[:at] + lossless.encode(theta, np.float32([value])).tobytes() + u.shard[at + 4 :])

    return change


def wild(u: Update) -> None:
    """Whatever a manifest's bounds admit, in an update that is aggregated; what reads the round has to bear it."""
    numbers = {
        "tokens_per_second": 1e45,
        "seconds": -1e45,
        "gradient_norm": 1e45,
        "mfu": -1e45,
        "delta_norm": -1e45,
    }
    numbers |= {
        "valid_loss": 1e45,
        "valid_tokens": 1e45,
        "loss/[/x]": 1e45,
        "../../x": 1e45,
        "data_tokens": 1e45,
        "last_loss": -1e45,
    }
    check = {
        "column": "[/x]",
        "observed": [1e45, "<b>", 2**53],
        "limit": {"min_value": -1e45},
        "expectation": "$x$",
    }
    u.manifest.update(
        metrics={"train_loss": 1.0} | numbers,
        notes=["[/x] \x1b[2J <!channel> $x$ [a](https://x.example)", "x" * 4000],
        spans=[{"phase": "$x$[/x]", "start": -1e45, "seconds": 1e45}],
        checks=[check] * 100,
        versions={"torch": "<b>[/x]", "photon": "\x1b[2J"},
        data_sha256="[/x]<b>",
    )


def _codec(name: str, fill: bytes) -> Callable[[Update], None]:
    """The whole update in another codec, every byte of its blocks as given."""

    def change(u: Update) -> None:
        codec = get_codec(name, ours=True)
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
    return lambda u: u.file["tensors"][SMALL].update(changes)


def _raw(make: Callable[[], bytes]) -> Callable[[Update], None]:
    """A manifest that is these bytes."""
    return lambda u: u.manifest.update(raw=make)


def _nodes(count: int) -> bytes:
    return b'{"x":' + b"[" * count + b"]" * count + b"}"


def _huge_file(u: Update) -> None:
    """A terabyte, without the disk noticing."""
    path = Path(u.store.url) / u.folder / "huge.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(u.shard)
    os.truncate(path, 1 << 40)
    u.file.update(path=path.name, bytes=1 << 40)


def _place(make: Callable[[Path], None], name: str) -> Callable[[Update], None]:
    """Something else than a plain file, on a shared disk."""

    def change(u: Update) -> None:
        path = Path(u.store.url) / u.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        if name == "update.json":
            u.manifest.clear()
        else:
            u.file.update(path=name)

    return change


def _unreadable(path: Path) -> None:
    path.write_bytes(b"{}")
    path.chmod(0)


def _closed(path: Path) -> None:
    path.write_bytes(b"{}")
    path.parent.chmod(0)


def _listed(path: Path) -> None:
    """Its names may be read, and nothing else of it."""
    path.write_bytes(b"{}")
    path.parent.chmod(0o444)


def _moments(**changes: Any) -> Callable[[Update], None]:
    """Moments that are no optimizer's, or that are not expected."""
    entry = {"path": "m", "sha256": "a" * 64, "bytes": 8, "tensors": {}}
    return lambda u: u.manifest.update(moments=[entry | changes, entry | changes | {"path": "n"}])


def _attempts(u: Update) -> None:
    """A manifest in each of many attempts; the newest counts, which is none."""
    for attempt in range(1, 40):
        u.store.create(f"{u.folder.rpartition('/')[0]}/{attempt:04d}/update.json", b"{}")
    u.manifest.clear()


def _far_rounds(u: Update) -> None:
    """Folders of rounds that are far away, beside an update that is no good."""
    t = int(u.folder.split("/")[2])
    for far in (*range(t + 1, t + 6), 999_999):
        u.store.create(f"run/rounds/{far:06d}/sites/nobody/0001/update.json", b"{}")
    u.manifest.update(steps=6)


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
    "wrong previous": (_set(previous_sha256="e" * 64), "follows a manifest of round"),
    "another site's": (_set(site="a"), "names run, round, site, attempt ('run', "),
    "unknown codec": (_set(codec="\x1b[2Jpickle"), "codec '?[2Jpickle' is not known"),
    "codec without its block": (_set(codec="int8"), "codec 'int8' is not known"),
    "codec of endless blocks": (
        _set(codec="int8:1" + "0" * 1000),
        "codec: String should have at most 200 characters",
    ),
    "another codec's tensors": (_set(codec="int8:256"), "has shape [24], the model's in codec int8:256 is"),
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
    "rows missing": (_tensor(rows=[0, 7]), "do not hold all rows of tensor 'norm_f.bias'"),
    "rows from the middle": (_tensor(rows=[1, 8]), "are not the next ones"),
    "rows backwards": (_tensor(rows=[8, 0]), "are not the next ones"),
    "rows of 3000 digits": (
        _tensor(rows=[0, 10**3000]),
        "rows.1: Input should be less than or equal to 9007199254740992",
    ),
    "huge size": (_file(bytes=10**15), "has 1000000000000000 bytes, but its tensors have 12288"),
    "negative size": (_file(bytes=-1), "bytes: Input should be greater than or equal to 0"),
    "tensor missing": (lambda u: u.file["tensors"].pop(SMALL), "has no tensor 'norm_f.bias'"),
    "tensor with a hostile name": (
        lambda u: u.file["tensors"].update({"\x1b]0;evil\n": {"dtype": "I32", "shape": [1]}}),
        "the model has no tensor '?]0;evil?'",
    ),
    "tensor twice": (lambda u: u.manifest["files"].append(u.file), "is in two files"),
    "other shape": (_tensor(shape=[4, 2]), "'norm_f.bias' has shape [4, 2], the model's is [8]"),
    "huge shape": (_tensor(shape=[10**15]), "'norm_f.bias' has shape [1000000000000000]"),
    "shape of 3000 digits": (
        _tensor(shape=[10**3000]),
        "shape.0: Input should be less than or equal to 9007199254740992",
    ),
    "endless shape": (_tensor(shape=[1] * 100_000), "shape: Tuple should have at most 16 items"),
    "other dtype": (_tensor(dtype="F32"), "'norm_f.bias' is F32"),
    "truncated": (lambda u: u.__dict__.update(shard=u.shard[:-100]), "ends before byte"),
    "emptied": (lambda u: u.__dict__.update(shard=b""), "is not a safetensors file"),
    "longer": (lambda u: u.__dict__.update(shard=u.shard + b"x"), "bytes; its manifest says"),
    "one bit": (
        lambda u: u.__dict__.update(shard=u.shard[:-9] + bytes([u.shard[-9] ^ 1]) + u.shard[-8:]),
        "does not have the blake3",
    ),
    "header of 2^63 bytes": (lambda u: u.header(b"{}", 2**63), "its header claims 9223372036854775808 bytes"),
    "huge header": (lambda u: u.header(b" " * (7 << 20)), "has 7352328 bytes, but its tensors have 12288"),
    "deep header": (lambda u: u.header(_nodes(30_000)), "the header is not JSON"),
    "header is no JSON": (lambda u: u.header(b"\xff" * 99), "the header is not JSON"),
    "header of other tensors": (
        lambda u: u.reshard(make_header({"x": TensorEntry(dtype="I8", shape=(len(u.shard),))}) + u.shard),
        "holds other tensors than its manifest says",
    ),
    "offsets beyond the file": (
        lambda u: u.header(b'{"norm_f.bias":{"dtype":"I32","shape":[8],"data_offsets":[99999999,100000031]}}'),
        "starts at byte",
    ),
    "plain parameters": (_codec("plain", b"\0"), "codec 'plain' is not known"),
    "moments that are not expected, or no optimizer's": (_moments(), "moment"),
    "moments of 10^15 bytes": (_moments(bytes=10**15), "moment"),
    "moments of 400 digits": (_moments(bytes=10**400), "bytes: Input should be less than or equal to"),
    "moments of 4300 digits": (_moments(bytes=9 * 10**4299), "bytes: Input should be less than or equal to"),
    "a path below a file": (lambda u: u.file.update(path="update.json/x"), "update.json/x"),
    "path of many bytes": (_file(path="/".join(["漢" * 80] * 5)), "is not a path inside the store"),
    "many files without tensors": (
        lambda u: u.manifest["files"].extend({**u.file, "path": f"{n}", "tensors": {}} for n in range(40)),
        "it has 41 files; its tensors fill at most",
    ),
    "many attempts": (_attempts, "is not a manifest"),
    "rounds far away": (_far_rounds, "claims 6 trained steps"),
    "markup": (lambda u: u.file["tensors"].update({"[/x]": {"dtype": "I32", "shape": [1]}}), "no tensor '[/x]'"),
    "markup in a metric": (_set(metrics={"train_loss": 1.0, "[/x]": 1e308}), "metrics.[/x]: Input should be less"),
    "metrics beyond all": (_set(metrics={"train_loss": 1.7e308}), "metrics.train_loss: Input should be less than"),
    "metric of 400 digits": (_set(metrics={"train_loss": 10**400}), "metrics.train_loss: Input should be"),
    "spans beyond all": (_set(spans=[{"phase": "train", "start": 1e308, "seconds": 1.0}]), "spans.0.start: Input"),
    "endless spans": (
        _set(spans=[{"phase": "train", "start": 1.0, "seconds": 1.0}] * 2000),
        "spans: List should have at most",
    ),
    "endless notes": (_set(notes=["x"] * 2000), "notes: List should have at most 1000 items"),
    "checks of 400 digits": (_set(checks=[{"observed": 10**400}]), "a whole number beyond 2^53"),
    "deep checks": (_set(checks=[{"observed": [[[[[[[[[[[0]]]]]]]]]]]}]), "deeper than 8"),
    "endless versions": (_set(versions={"x": "y" * 1000}), "versions.x: String should have at most 200"),
    "other base dtype": (_set(base_dtype="F64"), "is not a manifest: base_dtype"),
    "NaN": (_values(float("nan")), "'wte.weight' holds NaN or Inf"),
    "Inf": (_values(float("-inf")), "'wte.weight' holds NaN or Inf"),
}
ON_DISK: dict[str, tuple[Callable[[Update], None], str]] = {
    "a file of 1 TiB": (_huge_file, "has 1099511627776 bytes, but its tensors have 12288"),
    "a pipe": (_place(os.mkfifo, "pipe"), "pipe is not a plain file"),
    "a link to a device": (_place(lambda p: p.symlink_to("/dev/zero"), "zero"), "zero is a link"),
    "a link out of the store": (_place(lambda p: p.symlink_to("/etc/hostname"), "out"), "out is a link"),
    "a file that nobody may read": (_place(_unreadable, "secret"), "secret cannot be read: Permission denied"),
    "the manifest may not be read": (_place(_unreadable, "update.json"), "update.json cannot be read: Permission"),
    "the folder may not be read": (
        _place(_closed, "update.json"),
        "cannot be read: Permission denied",
    ),
    "the folder may only be listed": (
        _place(_listed, "update.json"),
        "cannot be read: Permission denied",
    ),
    "the manifest is a pipe": (_place(os.mkfifo, "update.json"), "update.json is not a plain file"),
    "the manifest is a folder": (_place(Path.mkdir, "update.json"), "update.json is not a plain file"),
    "the manifest is endless": (_place(lambda p: p.symlink_to("/dev/zero"), "update.json"), "is a link"),
}
