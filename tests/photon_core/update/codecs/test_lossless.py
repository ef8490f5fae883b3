"""The lossless codec: golden bytes, and every bit pattern back."""

import numpy as np
import pytest

from photon_core.update.codecs import lossless
from photon_core.update.codecs.registry import get_codec


def test_golden_bytes() -> None:
    theta = np.array([1.0, 1.0, 0.0, -2.5], np.float32)  # 3f800000 3f800000 00000000 c0200000
    theta_k = np.array([1.0, 2.0, -0.0, 1e-3], np.float32)  # 3f800000 40000000 80000000 3a83126f
    change = lossless.encode(theta, theta_k)
    assert change.dtype == np.int32
    assert change.tobytes().hex() == "0000000000008000000000806f12637a"


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (257,), (7, 5, 3)])
def test_every_bit_pattern_comes_back(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (2, *shape), dtype=np.uint32)  # NaNs with payloads, infinities, subnormals
    theta, theta_k = (np.asarray(b).view(np.float32) for b in bits)
    change = lossless.encode(theta, theta_k)
    assert change.shape == shape
    assert lossless.decode(theta, change).tobytes() == theta_k.tobytes()
    in_place = change.copy()
    assert lossless.decode(theta, in_place, out=in_place.view(np.float32)).tobytes() == theta_k.tobytes()


def test_a_float_difference_would_not_do() -> None:
    theta, theta_k = np.float32([1.0]), np.float32([1e-8])
    assert theta - (theta - theta_k) != theta_k
    assert lossless.decode(theta, lossless.encode(theta, theta_k)) == theta_k


def test_non_contiguous_parameters() -> None:
    theta, theta_k = np.arange(12, dtype=np.float32).reshape(3, 4).T, np.ones((4, 3), np.float32)
    assert np.array_equal(lossless.decode(theta, lossless.encode(theta, theta_k)), theta_k)


def test_wrong_types_and_shapes_are_refused() -> None:
    with pytest.raises(TypeError):
        lossless.encode(np.zeros(2), np.zeros(2, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        lossless.decode(np.zeros(2, np.float32), np.zeros(3, np.int32))


def test_it_is_the_codec_float32() -> None:
    codec = get_codec("float32")
    theta, theta_k = np.float32([1, 2]), np.float32([3, 4])
    assert (codec.lossless, codec.dtype, codec.shape((3, 4))) == (True, "I32", (3, 4))
    assert np.array_equal(codec.decode(theta, lossless.encode(theta, theta_k)), theta_k)
