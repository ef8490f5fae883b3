"""Canonical JSON and hashes: golden values."""

from pathlib import Path

import pytest

from photon_core.hashing import canonical_json, sha256_bytes, sha256_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_canonical_json_is_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": {"y": "ü", "x": True}}) == (
        b'{"a":{"x":true,"y":"\xc3\xbc"},"b":[1,2.5,null]}'
    )


def test_canonical_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError):
        canonical_json({"loss": float("nan")})


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "file") == ABC
