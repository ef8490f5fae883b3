"""What every commit says of its making: when, from which federation file, with which versions."""

import platform
from datetime import UTC, datetime
from importlib import metadata

from photon_core.hashing import canonical_json, sha256_bytes
from schemas.federation import Federation

PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "prefect", "numpy")


def versions() -> dict[str, str]:
    """Versions of what shapes the result, read from the installed packages without importing them."""
    found = {"photon": _version("photon-prefect"), "python": platform.python_version()}
    return found | {package: _version(package) for package in PACKAGES}


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
    """The same to the microsecond: no two commits have it in common."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
