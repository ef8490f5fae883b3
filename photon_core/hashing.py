"""Hashes and canonical JSON, on which manifests, chains and comparisons rely."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol, Self

from blake3 import blake3

BLOCK = 1 << 20


class Digest(Protocol):
    """An incremental hash."""

    def update(self, data: bytes | bytearray | memoryview, /) -> Any: ...
    def hexdigest(self) -> str: ...


class Hashes:
    """Both hashes that a manifest has of a file, computed incrementally.

    The sha256 names the content. Readers compare the blake3, which also has 256 bits and is as strong: sha256 in
    hardware takes 0.56 ns a byte on one core, more than reading and averaging together, blake3 0.2 ns.
    """

    def __init__(self) -> None:
        self._sha256, self._blake3 = hashlib.sha256(), blake3()

    def update(self, data: bytes | bytearray | memoryview) -> Self:
        self._sha256.update(data)
        self._blake3.update(data)
        return self

    def hexdigests(self) -> tuple[str, str]:
        """sha256 and blake3, 64 hexadecimal digits each."""
        return self._sha256.hexdigest(), self._blake3.hexdigest()


class Check:
    """The hash that verifies a file, computed incrementally: blake3 where the manifest gives it, else sha256.

    Args:
        sha256, blake3_digest: expected hashes, from the file's manifest entry; blake3_digest may be empty.
    """

    def __init__(self, sha256: str, blake3_digest: str) -> None:
        self.name, self.expected = ("blake3", blake3_digest) if blake3_digest else ("sha256", sha256)
        self._digest: Digest = blake3() if blake3_digest else hashlib.sha256()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def canonical_json(obj: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot hold.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a local file's bytes, as 64 hexadecimal digits, read in bounded memory."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(path: str | Path) -> tuple[str, str]:
    """sha256 and blake3 of a local file's bytes, read once, in bounded memory."""
    hashes = Hashes()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            hashes.update(block)
    return hashes.hexdigests()
