"""Places, which are paths or URLs, and reading federation files from them."""

import os
import re
from pathlib import Path
from typing import Any

from schemas.errors import FederationError
from schemas.server_errors import told


def is_url(place: str) -> bool:
    """Whether a place is passed to fsspec unchanged (s3://..., memory://...)."""
    return "://" in place or "::" in place


def local_path(place: str) -> Path | None:
    """The path of a place on this machine's disks; None for a remote one."""
    for scheme in ("file://", "local://"):
        if place.startswith(scheme):
            return Path(place.removeprefix(scheme))
    return None if is_url(place) else Path(place)


def read_text(place: str | os.PathLike[str], options: dict[str, Any] | None = None) -> str:
    """The text of a federation file.

    Args:
        place: path or URL of the file.
        options: keyword arguments for fsspec, if it is a URL.

    Raises:
        FederationError: it does not exist, is not text, or cannot be read. The message has the place and remedy.
    """
    path = local_path(str(place))
    try:
        if path is None:
            return _download(str(place), options or {}).decode("utf-8-sig")
        return path.expanduser().read_text("utf-8-sig")
    except FileNotFoundError:
        raise FederationError(f"{place}: does not exist; check the path") from None
    except IsADirectoryError:
        raise FederationError(f"{place}: is a folder; write the path of the federation file in it") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise FederationError(f"{place}:{line}: is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise FederationError(f"{place}: cannot be read ({error.strerror}); check its permissions") from None


def _download(url: str, options: dict[str, Any]) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb", **options) as file:
            data: bytes = file.read()
    except FileNotFoundError:
        raise
    except Exception as error:  # every filesystem has its own errors
        raise FederationError(f"{url}: cannot be read ({told(error)}); check address and credentials") from None
    return data


def protocol_problem(url: str) -> str | None:
    """Why fsspec cannot open the URL: unknown protocol or missing package. None if it can. Contacts no server."""
    import fsspec

    try:
        fsspec.get_filesystem_class(re.split(r"://|::", url)[0])
    except (ValueError, ImportError) as error:
        return f"'{url}' cannot be opened ({error}); write a path, or a URL such as s3://bucket/folder"
    return None
