"""Clip, noise, compress: in this order, each optional, and what stays at the site."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.errors import PhotonError
from photon_core.update.codecs import lossless
from photon_core.update.codecs.registry import Lossy
from photon_core.update.post_process import PostProcess, noise_generator
from schemas.sections.update import Update

SHAPES = {"b": (64, 33), "a": (70,), "c": ()}
Arrays = dict[str, np.ndarray]


def arrays(seed: int, spread: float) -> Arrays:
    rng = np.random.default_rng(seed)
    return {n: np.asarray(spread * rng.standard_normal(s), np.float32) for n, s in SHAPES.items()}


def added(theta: Arrays, change: Arrays) -> Arrays:
    return {n: np.asarray(theta[n] + change[n], np.float32) for n in theta}


def send(
    theta: Arrays, theta_k: Arrays, feedback: Arrays | None = None, noise: Any = None, **settings: Any
) -> tuple[Arrays, PostProcess]:
    """What the coordinator decodes."""
    process = PostProcess(
        Update(**settings), theta.__getitem__, theta_k.__getitem__, SHAPES, feedback or {}, noise
    )
    return {n: process.codec.decode(theta[n], process.encode(n)) for n in sorted(SHAPES)}, process


def norm(change: Arrays) -> float:
    return float(np.sqrt(sum((c.astype(np.float64) ** 2).sum() for c in change.values())))


def difference(a: Arrays, b: Arrays) -> Arrays:
    return {n: a[n].astype(np.float64) - b[n] for n in a}


def test_nothing_asked_for_is_lossless_and_as_before() -> None:
    theta, theta_k = arrays(0, 1), arrays(1, 1)
    process = PostProcess(Update(), theta.__getitem__, theta_k.__getitem__, SHAPES, {}, None)
    for name in sorted(SHAPES):
        assert process.encode(name).tobytes() == lossless.encode(theta[name], theta_k[name]).tobytes()
    assert process.metrics() == {"delta_norm": pytest.approx(norm(difference(theta_k, theta)), rel=1e-6)}
    assert process.kept == {}


@pytest.mark.parametrize("codec", ["float32", "bfloat16"])
def test_clipping(codec: Any) -> None:
    theta = arrays(0, 1)
    theta_k = added(theta, arrays(1, 0.1))
    length = norm(difference(theta_k, theta))
    found, process = send(theta, theta_k, clip_norm=length / 4, codec=codec)
    change = difference(found, theta)
    assert norm(change) == pytest.approx(length / 4, rel=5e-3)
    assert process.metrics()["unclipped_norm"] == pytest.approx(length, rel=1e-5)
    assert process.metrics()["delta_norm"] == pytest.approx(norm(change), rel=1e-4)
    for name, part in difference(theta_k, theta).items():
        assert np.allclose(change[name], part / 4, rtol=1e-2, atol=1e-6)
    short, _ = send(theta, theta_k, clip_norm=2 * length)
    assert all(short[n].tobytes() == theta_k[n].tobytes() for n in SHAPES)


@pytest.mark.parametrize("value", [1e-3, 5e19])
def test_a_norm_is_right_however_many_numbers_it_is_of(value: float) -> None:
    """The server rejects one that is off by a thousandth, and noise is measured by it."""
    theta = {"w": np.zeros((5_000, 1_000), np.float32)}
    theta_k = {"w": np.full((5_000, 1_000), value, np.float32)}
    process = PostProcess(Update(clip_norm=1.0), theta.__getitem__, theta_k.__getitem__, theta, {}, None)
    sent = process.codec.decode(theta["w"], process.encode("w"))
    expected = float(np.float32(value)) * 5e6**0.5
    assert process.metrics()["unclipped_norm"] == pytest.approx(expected, rel=1e-6)
    assert process.metrics()["delta_norm"] == pytest.approx(1.0, rel=1e-6)
    assert sent.min() == sent.max() == pytest.approx(5e6**-0.5, rel=1e-6)


def test_noise_is_gaussian_of_the_said_deviation_after_clipping() -> None:
    theta = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    theta_k = {n: np.full(s, 100, np.float32) for n, s in SHAPES.items()}
    found, process = send(theta, theta_k, noise=np.random.default_rng(3), clip_norm=0.5, noise_multiplier=2.0)
    assert process.metrics().keys() == {"delta_norm"}, "the norm before it is exact, and would not be hidden"
    values = np.concatenate([found[n].reshape(-1) for n in SHAPES])
    values -= 0.5 / np.sqrt(values.size)
    assert values.std() == pytest.approx(1.0, rel=0.05)
    assert abs(values.mean()) < 0.08
    assert (np.abs(values) < 1).mean() == pytest.approx(0.683, abs=0.03)


def test_the_noise_is_the_sites_own_and_the_same_for_the_same_work(tmp_path: Path) -> None:
    def draw(key: Path, work: str) -> list[float]:
        return list(noise_generator(key, work).standard_normal(4))

    first = draw(tmp_path / "key", "job 1")
    assert draw(tmp_path / "key", "job 1") == first
    assert draw(tmp_path / "key", "job 2") != first
    assert draw(tmp_path / "other", "job 1") != first
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "other"]


@pytest.mark.parametrize("left", [b"", bytes(31)])
def test_a_key_that_is_not_whole_makes_no_noise(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "key").write_bytes(left)
    with pytest.raises(PhotonError, match=r"bytes, not 32\. Remove it"):
        noise_generator(tmp_path / "key", "job 1")


@pytest.mark.parametrize("codec", ["int8", "int4", "int3", "topk", "bfloat16"])
def test_error_feedback_sends_later_what_was_lost(codec: Any) -> None:
    """Over many rounds the changes decoded differ from those made by what the site still keeps, and no more; also
    where the file turns to float32 for one of them."""
    theta = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    made, decoded = ({n: np.zeros(s) for n, s in SHAPES.items()} for _ in range(2))
    kept: Arrays = {}
    for t in range(20):
        change = arrays(t, 1e-3)
        found, process = send(theta, change, kept, codec="float32" if t == 10 else codec)
        kept = process.kept
        for n in SHAPES:
            made[n] += change[n]
            decoded[n] += found[n]
    left = difference(made, decoded)
    assert norm(difference(left, kept)) < 1e-5 * norm(made)
    once = 20 * norm(arrays(0, 1e-3))
    assert norm(kept) < once
    _, process = send(theta, arrays(0, 1e-3), codec=codec, error_feedback=False)
    assert process.kept == {}


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    theta, theta_k, kept = arrays(0, 1), arrays(1, 1), arrays(2, 1e-2)
    settings: dict[str, Any] = {"codec": "int4", "clip_norm": 1.0, "noise_multiplier": 0.1}
    both = []
    for _ in range(2):
        process = PostProcess(
            Update(**settings), theta.__getitem__, theta_k.__getitem__, SHAPES, kept,
            noise_generator(tmp_path / "key", "job"),
        )  # fmt: skip
        assert isinstance(process.codec, Lossy)
        both.append([process.encode(n).tobytes() for n in sorted(SHAPES)])
    assert both[0] == both[1]


def parts(theta: Arrays, theta_k: Arrays, noise: Any = None, **settings: Any) -> tuple[Arrays, PostProcess]:
    """What the coordinator has where "a" is a key layer's: the other tensors decoded, that one as it is sent."""
    process = PostProcess(Update(**settings), theta.__getitem__, theta_k.__getitem__, SHAPES, {}, noise)
    found = {n: process.codec.decode(theta[n], process.encode(n)) for n in ("b", "c")}
    return found | {"a": process.whole("a")}, process


@pytest.mark.parametrize("codec", ["float32", "int4", "topk"])
def test_a_key_layer_is_sent_whole_whatever_the_codec(codec: Any) -> None:
    theta, theta_k = arrays(0, 1), arrays(1, 1)
    found, process = parts(theta, theta_k, codec=codec)
    assert found["a"].tobytes() == theta_k["a"].tobytes()
    assert process.kept.keys() == ({"b", "c"} if codec != "float32" else set()), "nothing of it is lost"
    change = difference(found, theta)
    norms = {
        name: norm({n: change[n] for n in of}) for name, of in {"delta_norm": "bc", "key_delta_norm": "a"}.items()
    }
    assert process.metrics() == pytest.approx(norms, rel=1e-6)


def test_a_key_layer_is_clipped_and_noised_with_the_rest() -> None:
    theta = arrays(0, 1)
    theta_k = added(theta, arrays(1, 0.1))
    length = norm(difference(theta_k, theta))
    found, process = parts(theta, theta_k, clip_norm=length / 4)
    assert norm(difference(found, theta)) == pytest.approx(length / 4, rel=1e-5)
    assert np.allclose(found["a"] - theta["a"], (theta_k["a"] - theta["a"]) / 4, rtol=1e-5, atol=1e-7)
    metrics = process.metrics()
    assert metrics["unclipped_norm"] == pytest.approx(length, rel=1e-6)
    assert np.hypot(metrics["delta_norm"], metrics["key_delta_norm"]) == pytest.approx(length / 4, rel=1e-5)

    noised, _ = parts(theta, theta_k, np.random.default_rng(3), clip_norm=length / 4, noise_multiplier=2.0)
    noise = np.concatenate([(noised[n] - found[n]).reshape(-1) for n in SHAPES])
    assert noise.std() == pytest.approx(length / 2, rel=0.05)
    assert np.abs(np.corrcoef(noise[:70], noise[70:140])[0, 1]) < 0.5
    assert (noised["a"] - found["a"]).std() == pytest.approx(length / 2, rel=0.3)
