"""Secrets, detected by their form: a federation file must contain none, because all sites and the server read it.

A value is a secret by form if it is a URL with a password or with a signature, key or token in its query, a token
with a known prefix, or an option or environment variable whose name indicates one. References to Prefect blocks
are allowed: the worker resolves them when it starts a job.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

Key = tuple[str | int, ...]

FREE_FORM = ("options", "job_variables")  # sections with keys of other programs: a key's name indicates a secret
NAMED = {"KEY", "TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "PASS", "AUTH", "CREDENTIAL", "CREDENTIALS"}
# the same words, written as one
NAMED |= {"APIKEY", "ACCESSKEY", "SECRETKEY", "PRIVATEKEY", "ACCESSTOKEN", "AUTHTOKEN", "AUTHORIZATION"}
NAMED |= {"PASSWD", "PASSPHRASE"}
IN_QUERY = NAMED | {"SIG", "SIGNATURE", "PWD"}
# Kubernetes keys whose value refers to a secret or names a label; lower case, without separators
REFERRING = ("secretkeyref", "configmapkeyref", "secretref", "secretname", "imagepullsecrets", "topologykey")
SELECTS = {"operator", "effect"}  # beside these, `key` is the name of a label or taint

REFERENCE = re.compile(r"\{\{\s*(?:prefect\.(?:blocks|variables)\.[\w.-]+|\$\w+)\s*\}\}")
HELD = "\0"  # placeholder of a reference while the text around it is checked
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
# user:password@ after //, or at the start of a text or a word; a port, a path and C:\ are not passwords
LOGIN = re.compile(
    r"(?://|(?:^|[\s\"'=,;(\[{<|]|:/)/*)(?!\w[\w+.-]*://|mailto:|(?<!/)[A-Za-z]:\\)"
    r"[^\s/@:\"']{0,256}:(?!:|\d{0,9}(?:[/?#\"'\s]|$))(?!\0@)[^\s@]{0,1024}"
    r"(?:[^\s@/]@|@[^\s@/]{0,256}@)(?!sha\d+:)"
)
WEB_LOGIN = re.compile(r"\b(?:https?|ftps?):/*(?!\0?@|[^\s/@]{0,256}\0@)[^\s/@?#\"']{1,1024}@", re.IGNORECASE)
QUERY = re.compile(r"[?&;#]([\w.%\[\]-]+)=(?!\0)[^&\s\"'#;]")
ASSIGNED = re.compile(r"(?:^|[\s\"',{;])-{0,2}([A-Za-z][\w.-]*)(?:=|\s*:\s+)[\"']?(?!\0|[\"'])\S")
NO_SECRET = re.compile(r"public[_-]?key|key[_-]?layers?", re.IGNORECASE)
FLAG = re.compile(r"(?:^|\s)--?([A-Za-z][\w-]*)\s+(?![-\0])\S")
KNOWN = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[opsur]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\bpn[ub]_\w{20,}|\bsk-(?:(?:proj|svcacct|admin|ant|or|lf|live|test)-[\w-]{20,}|[A-Za-z0-9]{20,})|\bdapi[0-9a-f]{32}\b"
    r"|\bxox[abeoprs]-[\w-]{10,}|\bAIza[\w-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.|\bBearer\s+[\w.~+/-]{12,}|\bBasic\s+[A-Za-z0-9+/]{15,}={0,2}(?!\w)"
    r"|hooks\.slack\.com/(?:services|workflows)/\w|discord(?:app)?\.com/api/webhooks/\w|\.webhook\.office\.com/\w"
)

REDACTED = "(a secret was here)"
OPTION = "set it in the environment of the machine that uses it"
VARIABLE = (
    "set it in the worker's environment, or write a reference to a block, such as "
    "'{{ prefect.blocks.secret.NAME }}'"
)
NOTIFY = (
    "is a secret by its form, which every flow run's parameters would show; save the address in a block of the "
    "Prefect server, and write block: webhook/NAME"
)
PLACE = "credentials come from the environment, storage.profile or a Prefect block"


@dataclass(frozen=True)
class Secret:
    """Place of a secret, and a message with the remedy. The message never repeats the value."""

    place: Key
    message: str


def words(name: str) -> set[str]:
    """The words of a name, in capitals: HF and TOKEN for HF_TOKEN, hf-token and hfToken."""
    return {word.upper() for word in WORD.findall(NO_SECRET.sub("", name))}


def find_secrets(data: Any) -> Iterator[Secret]:
    """Every secret in a federation file's data, as written or with defaults."""
    try:
        yield from list(_below(data, (), False, frozenset()))
    except RecursionError:
        yield Secret((), "is nested too deeply; a federation file has a few levels")


def has_secret(text: str) -> bool:
    """Whether a text contains a secret by its form, in any place of the file."""
    return _in_text(text, free=False) is not None


def redacted(data: Any) -> Any:
    """A copy with a placeholder for each secret: files of older versions may contain some."""
    places = {secret.place for secret in find_secrets(data)}
    return _without(data, (), places) if places else data


def _without(data: Any, at: Key, places: set[Key]) -> Any:
    if at in places:
        return REDACTED
    if isinstance(data, dict):
        return {_plain(key): _without(value, (*at, key), places) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without(value, (*at, i), places) for i, value in enumerate(data)]
    return data


def _plain(key: Any) -> Any:
    return REDACTED if isinstance(key, str) and has_secret(key) else key


def _below(data: Any, at: Key, free: bool, above: frozenset[int]) -> Iterator[Secret]:
    """Secrets of a value and of everything below it.

    Args:
        data, at: value and its place.
        free: flag: the place is in a free-form section.
        above: ids of the mappings and lists around the value: aliases of YAML can form a cycle.
    """
    if isinstance(data, str):
        if what := _in_text(data, free):
            yield Secret(at, f"contains {what}; remove it: {_remedy(at)}")
    elif isinstance(data, dict | list | tuple) and id(data) not in above:
        above |= {id(data)}
        if isinstance(data, dict):
            for key in data:
                yield from _entry(data, key, at, free, above)
        elif free and (what := _in_arguments(data)):
            yield Secret(at, f"contains {what}; remove it: {_remedy(at)}")
        else:
            for i, item in enumerate(data):
                yield from _below(item, (*at, i), free, above)


def _entry(data: dict[Any, Any], key: Any, at: Key, free: bool, above: frozenset[int]) -> Iterator[Secret]:
    """Secrets of one key of a mapping, and of its value."""
    name, value, here = str(key), data[key], (*at, key)
    if what := _in_text(name, free=False):
        yield Secret(at, f"has a key that contains {what}; remove it: {_remedy(at)}")
    elif here[-3:] == ("deploy", "notify", "webhook") and value is not None:
        yield Secret(here, NOTIFY)
    elif free and _refers(name, data):
        yield from _below(value, here, False, above)
    elif free and words(name) & NAMED and _filled(value):
        yield Secret(here, f"is a secret by its name, in plain text; remove it: {_remedy(here)}")
    elif free and name == "value" and words(_name_beside(data)) & NAMED and _filled(value):
        yield Secret(here, f"is a secret by the name beside it, in plain text; remove it: {_remedy(here)}")
    else:
        yield from _below(value, here, free or name in FREE_FORM, above)


def _name_beside(data: dict[Any, Any]) -> str:
    """The name in Kubernetes' {name: ..., value: ...}."""
    return next((data[key] for key in ("name", "key") if isinstance(data.get(key), str)), "")


def _in_arguments(items: list[Any] | tuple[Any, ...]) -> str | None:
    """Kind of secret in a list of a command's arguments, such as ["--token", "..."]; None if there is none."""
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items) or any(_in_text(text, free=True) for text in texts):
        return None  # the caller reports each at its own place
    return _in_text(" ".join(texts), free=True)


def _refers(key: str, beside: dict[Any, Any]) -> bool:
    """Whether a key of a job's manifest refers to a secret and contains none."""
    plain = re.sub(r"[^a-z]", "", key.lower())
    return (key != key.upper() and plain in REFERRING) or (key == "key" and bool(SELECTS & set(beside)))


def _filled(value: Any) -> bool:
    """Whether a value contains anything but references to blocks, or a switch."""
    if isinstance(value, str):
        return bool(REFERENCE.sub("", value).strip())
    if isinstance(value, dict):
        return any(map(_filled, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_filled, value))
    return value is not None and not isinstance(value, bool)


def _in_text(text: str, free: bool) -> str | None:
    """Kind of secret in a text, in words; None if there is none. `free`: the text is in a free-form section."""
    for form in _decoded(REFERENCE.sub(HELD, text)):
        if LOGIN.search(form) or WEB_LOGIN.search(form):
            return "the user name or password of a URL"
        for pattern, names in ((QUERY, IN_QUERY), *(((ASSIGNED, NAMED), (FLAG, NAMED)) if free else ())):
            for match in pattern.finditer(form):
                if words(match[1]) & names:
                    return f"a secret under '{match[1][:40]}'"
        if KNOWN.search(form):
            return "a token"
    return None


def _decoded(text: str) -> Iterator[str]:
    """A text, and the text after each level of percent-decoding."""
    for _ in range(4):
        yield text
        plain = unquote(text)
        if plain == text:
            return
        text = plain


def _remedy(at: Key) -> str:
    if "job_variables" in at:
        return VARIABLE
    return OPTION if "options" in at else PLACE
