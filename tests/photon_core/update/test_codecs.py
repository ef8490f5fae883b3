"""The lossy codecs: golden bytes, bounds on the error over every kind of value, pieces, hostile bytes."""

import math
import struct

import numpy as np
import pytest

from photon_core.errors import CorruptFile, PhotonError
from photon_core.tensors.numerics import to_bfloat16
from photon_core.update.codecs.registry import Codec, Lossy, get_codec

NAMES = [
    "bfloat16",
    "float16",
    "int8:16",
    "int8:256",
    "int4:16",
    "int4:256",
    "int3:16",
    "int3:256",
    "topk:16:3",
    "topk:256:16",
    "topk:512:7",
]
SHAPES = [(), (0,), (1,), (3, 0, 2), (15,), (16,), (17,), (2, 257), (1000,), (7, 5, 33), (513, 2)]
TINY = 2.0**-140


def lossy(name: str) -> Lossy:
    codec = get_codec(name)
    assert isinstance(codec, Lossy)
    return codec


def changes(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Finite float32 values: ordinary, of all exponents, subnormal, zeros of both signs, the largest, ties."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return np.asarray(rng.standard_normal(shape) * 1e-3, np.float32)
    bits = rng.integers(0, 2**32, shape, dtype=np.uint32)
    values = np.array(np.asarray(bits).view(np.float32))
    values[~np.isfinite(values)] = np.finfo(np.float32).max
    flat = values.reshape(-1)
    if seed % 3 == 1 and flat.size:
        flat[rng.random(flat.size) < 0.5] = rng.choice(np.float32([0, -0.0, 1e-45, -3e-39, 1, 0.5, -1.5]))
    return values


def bound(name: str, c: np.ndarray) -> np.ndarray:
    """The documented largest error of every element, in float64."""
    c = np.abs(c.astype(np.float64).reshape(-1))
    if name == "bfloat16":
        largest = float(np.uint32(0x7F7F0000).view(np.float32))
        return np.where(c > largest, c - largest, np.maximum(2.0**-8 * c, 2.0**-134))
    if name == "float16":
        return np.where(c > 65504, c - 65504, np.maximum(2.0**-11 * c, 2.0**-25))
    kind, *numbers = name.split(":")
    block, found = int(numbers[0]), np.zeros(c.size)
    for start in range(0, c.size, block):
        part = c[start : start + block]
        step = part.max() / {"int4": 14, "int3": 6}.get(kind, 254) * (1 + 2.0**-20) + TINY
        found[start : start + block] = step
        if kind == "topk":
            kept = math.ceil(int(numbers[1]) * len(part) / block)
            found[start : start + block] = np.maximum(step, np.minimum(part, np.sort(part)[-kept]))
    return found


def test_golden_bytes() -> None:
    c = np.float32([0.25, -1.0, 3e-3, 0.0, 1.0])
    assert lossy("bfloat16").encode(c).tobytes().hex() == "803e" + "80bf" + "453b" + "0000" + "803f"
    assert lossy("float16").encode(c).tobytes().hex() == "0034" + "00bc" + "251a" + "0000" + "003c"
    scale = struct.pack("<f", np.float32(1) / np.float32(127)).hex()
    assert lossy("int8:16").encode(c).tobytes().hex() == scale + "20" + "81" + "00" + "00" + "7f"
    scale_4 = struct.pack("<f", np.float32(1) / np.float32(7)).hex()
    # 2 -7, 0 0, 7 and a filler: 8 more than each, the first in the low half
    assert lossy("int4:16").encode(c).tobytes().hex() == scale_4 + "1a" + "88" + "8f"
    scale_3 = struct.pack("<f", np.float32(1) / np.float32(3)).hex()
    # 1 -3 0 0 3 and three fillers, 4 more than each: 5 1 4 4 7 4 4 4 in octal from the right
    assert lossy("int3:16").encode(c).tobytes().hex() == scale_3 + (0o44474415).to_bytes(3, "little").hex()
    # ceil(6 * 5 / 16) = 2 are kept: numbers 1 and 4
    assert lossy("topk:16:6").encode(c).tobytes().hex() == scale + "01" + "04" + "81" + "7f"
    assert lossy("topk:512:200").encode(c).tobytes().hex() == scale + "0100" + "0400" + "81" + "7f"
    two = np.concatenate([np.zeros(16, np.float32), c])
    assert lossy("int8:16").encode(two).tobytes().hex() == "00" * 20 + scale + "2081" + "00007f"


@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_within_its_bound(name: str) -> None:
    codec = lossy(name)
    for seed, shape in enumerate(SHAPES * 9):
        c = changes(seed, shape)
        encoded = codec.encode(c)
        assert encoded.shape == codec.shape(shape)
        found = codec.change(encoded, shape)
        assert found.shape == shape
        assert np.isfinite(found).all()
        error = np.abs(found.astype(np.float64) - c).reshape(-1)
        assert (error <= bound(name, c)).all(), (seed, shape)
        assert codec.encode(c).tobytes() == encoded.tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("topk")])
def test_top_k_brings_the_change_nearer_to_nothing(name: str) -> None:
    """|c - decoded|^2 <= (1 - K/B) |c|^2 + K (s/2)^2: what error feedback needs to stay bounded."""
    _, block, kept = (int(part) if part.isdigit() else part for part in name.split(":"))
    c = changes(0, (int(block) * 20,)).reshape(20, -1).astype(np.float64)
    left = ((lossy(name).change(lossy(name).encode(np.float32(c)), c.shape) - c) ** 2).sum(1)
    steps = np.abs(c).max(1) / 127
    assert (left <= (1 - int(kept) / int(block)) * (c**2).sum(1) + int(kept) * steps**2 / 4 + 1e-12).all()


def test_to_bfloat16_is_torchs_where_torch_stays_finite() -> None:
    import torch

    values = np.concatenate([changes(seed, (20_000,)) for seed in (0, 1, 2)])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    finite = (expected & 0x7FFF) < 0x7F80
    assert finite.mean() > 0.5
    assert (to_bfloat16(values)[finite] == expected[finite]).all()
    assert (to_bfloat16(values)[~finite] & 0x7FFF == 0x7F7F).all()


@pytest.mark.parametrize("name", ["float32", *NAMES])
def test_any_piece_of_whole_blocks_is_a_range_of_bytes(name: str) -> None:
    codec: Codec = get_codec(name)
    theta, theta_k = changes(0, (3000,)), changes(0, (3000,)) + changes(3, (3000,))
    encoded = codec.encode(theta_k - theta) if isinstance(codec, Lossy) else codec.encode(theta, theta_k)  # type: ignore[attr-defined]
    whole = codec.decode(theta, encoded)
    assert encoded.size == codec.position(theta.size)
    for step in (codec.block, 3 * codec.block):
        for start in range(0, 3000, step):
            end = min(3000, start + step)
            piece = encoded[codec.position(start) : codec.position(end)].copy()
            out = np.empty(end - start, np.float32)
            assert codec.decode(theta[start:end], piece, out) is out
            assert out.tobytes() == whole[start:end].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_decoding_over_theta_itself(name: str) -> None:
    codec, theta = lossy(name), changes(3, (700,))
    encoded = codec.encode(changes(0, (700,)))
    expected = codec.decode(theta, encoded)
    assert codec.decode(theta, encoded, theta) is theta
    assert theta.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_sent(name: str, value: float) -> None:
    c = changes(0, (300,))
    c[-1] = value
    with pytest.raises(PhotonError, match="NaN or Inf"):
        lossy(name).encode(c)


@pytest.mark.parametrize("indices", [[3, 3], [4, 1], [0, 16], [255, 255]])
def test_indices_that_do_not_ascend_in_their_block_are_refused(indices: list[int]) -> None:
    codec = lossy("topk:16:2")
    encoded = np.frombuffer(struct.pack("<f", 1.0) + bytes(indices) + b"\1\1", np.uint8)
    with pytest.raises(CorruptFile, match="topk:16:2"):
        codec.change(encoded, (16,))
    short = np.frombuffer(struct.pack("<f", 1.0) + bytes([4]) + b"\1", np.uint8)
    with pytest.raises(CorruptFile, match="topk:16:2"):
        codec.change(short, (4,))


@pytest.mark.parametrize("name", NAMES[:9])
def test_random_bytes_decode_to_something_or_are_refused(name: str) -> None:
    codec, rng = lossy(name), np.random.default_rng(0)
    size = codec.shape((100,))[0] * codec.numpy_dtype.itemsize
    for _ in range(50):
        encoded = np.frombuffer(rng.bytes(size), codec.numpy_dtype)
        try:
            with np.errstate(all="ignore"):
                assert codec.change(encoded, (100,)).shape == (100,)
        except CorruptFile:
            assert name.startswith("topk")


@pytest.mark.parametrize(
    "name",
    ["zip", "int8", "int8:", "int8:8", "int8:8192", "int8:24", "int8:16:2", "int4:99999999", "topk:16",
     "topk:16:0", "topk:16:17", "float32:16", " float32", "int8:016x", "int8:١٦"],
)  # fmt: skip
def test_other_names_are_no_codecs(name: str) -> None:
    with pytest.raises(PhotonError, match="is not known; use one of: bfloat16, float16, float32, int3:BLOCK"):
        get_codec(name)
