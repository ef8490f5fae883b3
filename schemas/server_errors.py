"""Short error texts without secrets: a server's error text may repeat keys and addresses.

Some servers repeat the access key, the signed address or the request in their texts. If a server, or a client of
one, may have written an error's text, only the error's kind and the server's code are shown.
"""

import re
from collections.abc import Iterator
from typing import Any

from schemas.errors import PhotonError

CODE = re.compile(r"\d{3}|[A-Z][A-Za-z.]{1,60}|XAmzContentSHA256Mismatch")  # anything else may be a secret
CLIENTS = {  # packages whose errors contain text from a server
    *("botocore", "aiobotocore", "boto3", "s3fs", "s3transfer", "gcsfs", "google", "adlfs", "azure", "fsspec"),
    *("aiohttp", "httpx", "httpcore", "requests", "urllib", "urllib3", "http", "huggingface_hub", "paramiko"),
    *("mlflow", "wandb", "prefect"),
}


def told(error: BaseException) -> str:
    """An error's text if this machine wrote it; else its kind and the server's code."""
    return cause(error) if foreign(error) else str(error) or type(error).__name__


def cause(error: BaseException) -> str:
    """An error's kind, and the server's status and code, if it answered."""
    status = http_status(error)
    if status is not None:
        return f"HTTP {status} {error_code(error)}".strip()
    other = _status(error)
    return type(error).__name__ + (f", HTTP {other}" if other else "")


def foreign(error: BaseException) -> bool:
    """Whether a server, or a client of one, may have written part of the error's text."""
    return any(
        not isinstance(layer, PhotonError)
        and (type(layer).__module__.split(".")[0] in CLIENTS or isinstance(getattr(layer, "response", None), dict))
        for layer in chain(error)
    )


def quiet(error: Exception) -> Exception:
    """The error in a form that is safe to raise: without text from a server, and without its causes."""
    if not foreign(error):
        return error
    kind = type(error) if type(error).__module__ == "builtins" and isinstance(error, OSError) else OSError
    number = getattr(error, "errno", None)
    plain: Any = kind(number, cause(error)) if isinstance(number, int) else kind(cause(error))
    if (status := http_status(error)) is not None:
        plain.response = {"Error": {"Code": error_code(error)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return plain


def error_code(error: BaseException) -> str:
    """The server's error code, also under an OSError of s3fs; empty if no text there can be a code."""
    code = str(_response(error).get("Error", {}).get("Code", ""))
    return code if CODE.fullmatch(code) else ""


def http_status(error: BaseException) -> int | None:
    """Status of an S3 server's answer; None if there was no answer."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status is not None else None


def _response(error: BaseException) -> dict[str, Any]:
    for layer in (error, error.__cause__):
        response = getattr(layer, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _status(error: BaseException) -> int | None:
    """Status of another server's answer, as its client stores it."""
    for layer in chain(error):
        for holder in (layer, getattr(layer, "response", None)):
            for name in ("status_code", "status", "code"):
                if isinstance(found := getattr(holder, name, None), int) and 100 <= found < 600:
                    return found
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: errors that it was raised from, or while handling."""
    seen: set[int] = set()
    layer: BaseException | None = error
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        yield layer
        layer = layer.__cause__ or (None if layer.__suppress_context__ else layer.__context__)
