"""Provenance that every commit records: time, federation file, versions."""

import platform
from datetime import UTC, datetime
from importlib import metadata

from photon_core.hashing import canonical_json, sha256_bytes
from schemas.federation import Federation

PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "prefect", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that determine the result, read from their metadata without importing them."""
    own = {"photon": _version("photon-prefect"), "python": platform.python_version()}
    return own | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def federation_sha256(federation: Federation) -> str:
    return sha256_bytes(canonical_json(federation.model_dump(mode="json")))


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def precise_now() -> str:
    """The time to the microsecond, so that no two commits have the same."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
