"""An error in few words that hold no secret: what a server writes into its errors may repeat keys and addresses.

Some servers repeat the access key, the signed address or the request in their texts. Of an error that a server, or
a client of one, has had a hand in, only its kind and the server's code are told.
"""

import re
from collections.abc import Iterator
from typing import Any

from schemas.errors import PhotonError

CODE = re.compile(r"\d{3}|[A-Z][A-Za-z.]{1,60}|XAmzContentSHA256Mismatch")  # anything else may be a secret
CLIENTS = {  # packages whose errors hold what a server has written
    *("botocore", "aiobotocore", "boto3", "s3fs", "s3transfer", "gcsfs", "google", "adlfs", "azure", "fsspec"),
    *("aiohttp", "httpx", "httpcore", "requests", "urllib", "urllib3", "http", "huggingface_hub", "paramiko"),
    *("mlflow", "wandb", "prefect"),
}


def told(error: BaseException) -> str:
    """An error's own text where this machine wrote it; else its kind and the server's code."""
    return cause(error) if foreign(error) else str(error) or type(error).__name__


def cause(error: BaseException) -> str:
    """An error's kind, and the server's status and code if it answered."""
    status = http_status(error)
    if status is not None:
        return f"HTTP {status} {error_code(error)}".strip()
    other = _status(error)
    return type(error).__name__ + (f", HTTP {other}" if other else "")


def foreign(error: BaseException) -> bool:
    """Whether a server, or a client of one, may have written a part of the error's text."""
    return any(
        not isinstance(layer, PhotonError)
        and (type(layer).__module__.split(".")[0] in CLIENTS or isinstance(getattr(layer, "response", None), dict))
        for layer in chain(error)
    )


def quiet(error: Exception) -> Exception:
    """The error as it may be raised further: without what a server wrote, and without what it was made from."""
    if not foreign(error):
        return error
    kind = type(error) if type(error).__module__ == "builtins" and isinstance(error, OSError) else OSError
    number = getattr(error, "errno", None)
    plain: Any = kind(number, cause(error)) if isinstance(number, int) else kind(cause(error))
    if (status := http_status(error)) is not None:
        plain.response = {"Error": {"Code": error_code(error)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return plain


def error_code(error: BaseException) -> str:
    """The server's own error code, also under an OSError of s3fs; empty if there is none that can be one."""
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
    """Status of another server's answer, as its clients keep it."""
    for layer in chain(error):
        for holder in (layer, getattr(layer, "response", None)):
            for name in ("status_code", "status", "code"):
                if isinstance(found := getattr(holder, name, None), int) and 100 <= found < 600:
                    return found
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, or while."""
    seen: set[int] = set()
    layer: BaseException | None = error
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        yield layer
        layer = layer.__cause__ or (None if layer.__suppress_context__ else layer.__context__)
