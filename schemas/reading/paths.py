"""Paths and URLs in a federation file: made absolute when it is read, and checked before any work."""

import glob
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.places import is_url, local_path, protocol_problem, read_text
from schemas.reading.problems import locate
from schemas.reading.yaml_lines import Key, read_yaml
from schemas.sections.overlap import linked, local_matches
from schemas.sections.values import BROKEN_URL, is_s3
from schemas.server_errors import told
from schemas.view import view_of

SOURCE_FILE = re.compile(r"\.((jsonl|txt)(\.gz|\.zst)?|parquet)$", re.IGNORECASE)
ENDINGS = ".jsonl, .txt (also .gz, .zst) or .parquet"


def is_tokenizer_file(spec: str) -> bool:
    """Whether the tokenizer is a file, and neither 'bytes' nor a Hugging Face name."""
    return spec.endswith(".json") or spec.startswith((".", "/", "~")) or is_url(spec)


def resolve(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of the file's mapping with absolute local paths. Relative paths start at the file's folder.

    A missing state_dir gets its default. Values of a wrong type are kept, so that validation reports them.
    """

    def absolute(value: Any) -> Any:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            return value
        if is_url(value) or BROKEN_URL.match(value):
            return value
        return os.path.normpath(folder / Path(value).expanduser())

    data = dict(data)
    if "store" in data:
        data["store"] = absolute(data["store"])
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, str) and tokenizer != "bytes":
        # a file without .json beside the federation file takes precedence over a Hugging Face name
        beside = tokenizer.isprintable() and len(tokenizer) < 200 and (folder / tokenizer).is_file()
        if is_tokenizer_file(tokenizer) or beside:
            data["tokenizer"] = absolute(tokenizer)
    if isinstance(data.get("trackers"), list):
        usual = str(folder / "photon-trackers")
        data["trackers"] = [
            {**t, "folder": absolute(t.get("folder", usual))} if isinstance(t, dict) else t
            for t in data["trackers"]
        ]
    if isinstance(data.get("start"), dict):
        start = data["start"]
        data["start"] = {k: absolute(v) if k in ("checkpoint", "store") else v for k, v in start.items()}
    if isinstance(data.get("sites"), list):
        data["sites"] = [_resolve_site(s, data.get("run"), folder, absolute) for s in data["sites"]]
    _resolve_tree(data, absolute)
    return data


def resolve_remote(data: dict[str, Any], url: str) -> dict[str, Any]:
    """A copy of the mapping of a file at a URL, with URLs for members' files that it names relative to itself.

    All other local places remain unchanged: they belong to the machine that has the file on a disk.
    """

    def beside(value: Any) -> Any:
        if not isinstance(value, str) or is_url(value) or value.startswith(("/", "~")):
            return value
        scheme, _, path = url.rpartition("://")
        return f"{scheme}://{os.path.normpath(f'{path}/../{value}')}"

    data = dict(data)
    _resolve_key(data, "federations", "federation", beside)
    return data


def _resolve_tree(data: dict[str, Any], absolute: Callable[[Any], Any]) -> None:
    _resolve_key(data, "federations", "federation", absolute)
    if isinstance(data.get("parent"), dict) and "store" in data["parent"]:
        data["parent"] = {**data["parent"], "store": absolute(data["parent"]["store"])}


def _resolve_key(data: dict[str, Any], section: str, key: str, place: Callable[[Any], Any]) -> None:
    """Resolve the key's values in a list of sections. Values of another shape remain for validation to report."""
    if isinstance(data.get(section), list):
        data[section] = [
            {**one, key: place(one[key])} if isinstance(one, dict) and key in one else one for one in data[section]
        ]


def _resolve_site(site: Any, run: Any, folder: Path, absolute: Any) -> Any:
    if not isinstance(site, dict):
        return site
    site, name = dict(site), site.get("name")
    if site.get("state_dir") is not None:
        site["state_dir"] = absolute(site["state_dir"])
    elif isinstance(run, str) and isinstance(name, str):
        site["state_dir"] = str(folder / "photon-sites" / run / name)
    if isinstance(site.get("streams"), list):
        site["streams"] = [
            {**s, "source": absolute(s["source"])} if isinstance(s, dict) and "source" in s else s
            for s in site["streams"]
        ]
    if "shards" in site:
        site["shards"] = absolute(site["shards"])
    return site


def check_paths(
    federation: Federation, sites: Iterable[str] | None = None, *, file: str | os.PathLike[str] | None = None
) -> None:
    """Check every path and URL of the federation, before any work.

    Args:
        federation: federation as load_federation returned it.
        sites: names of the sites whose sources must be readable from here; all if None, none if empty. With names,
            the files of federations are not checked.
        file: path of the federation file, for line numbers in messages.

    Raises:
        FederationError: a source, tokenizer or store is missing, or paths overlap with links resolved; the message
            has one line for each problem, with key, value and remedy.
    """
    wanted = None if sites is None else set(sites)
    problems: list[tuple[Key, str]] = []
    _add(problems, ("store",), _store_problem(federation.store))
    _add(problems, ("tokenizer",), _tokenizer_problem(federation.tokenizer))
    for i, site in enumerate(federation.sites):
        if wanted is not None and site.name not in wanted:
            continue
        for j, stream in enumerate(site.streams):
            options = view_of(federation, site.name).options(stream.source)
            _add(problems, ("sites", i, "streams", j, "source"), _source_problem(stream.source, options))
        if site.shards is not None:
            _add(problems, ("sites", i, "shards"), _store_problem(site.shards))
        if site.state_dir is not None:
            _add(problems, ("sites", i, "state_dir"), _folder_problem(Path(site.state_dir)))
    for i, child in enumerate([] if wanted else federation.federations):
        _add(problems, ("federations", i, "federation"), file_problem(federation, child.federation))
    if problem := linked(federation, wanted):
        message, key = problem
        problems.append((key, message))
    _refuse(problems, federation, file)


def check_store(federation: Federation, file: str | os.PathLike[str]) -> None:
    """Check that the store's URL has a known scheme, for commands that use no other path of the file.

    Raises:
        FederationError: the scheme is unknown; the message has file, line, key, value and remedy.
    """
    problem = None if local_path(federation.store) else protocol_problem(federation.store)
    _refuse([(("store",), problem)] if problem else [], federation, file)


def file_problem(federation: Federation, place: str | None) -> str | None:
    """Why a member's federation file cannot be read; None if it can, or if no place is given."""
    if place is None:
        return None
    path, remedy = local_path(place), "or drop it: then the member's file stays with the member"
    if path is None:
        problem = _remote_problem(place, file_options(federation, place))
        return f"{problem}, {remedy}" if problem else None
    if path.is_dir():
        return f"'{place}' is a folder; name the federation file in it, {remedy}"
    return None if path.is_file() else f"'{place}' does not exist; write the path or URL of its file, {remedy}"


def file_options(federation: Federation, place: str) -> dict[str, Any]:
    """Keyword arguments for fsspec to read a member's federation file."""
    return federation.storage.options() if is_s3(place) else {}


def _refuse(problems: list[tuple[Key, str]], federation: Federation, file: str | os.PathLike[str] | None) -> None:
    if not problems:
        return
    data: Any = federation.model_dump()
    lines: dict[Key, int] = {}
    shown_file = "federation"
    if file is not None:
        shown_file = str(file)
        data, lines = read_yaml(read_text(file), shown_file)
    texts = [locate(place, message, data, shown_file, lines) for place, message in problems]
    if file is None:
        texts = [text.replace("federation:1: ", "", 1) for text in texts]
    raise FederationError("\n".join(texts))


def _add(problems: list[tuple[Key, str]], place: Key, message: str | None) -> None:
    if message:
        problems.append((place, message))


def _store_problem(store: str) -> str | None:
    path = local_path(store)
    return protocol_problem(store) if path is None else _folder_problem(path)


def _folder_problem(path: Path) -> str | None:
    """Why path cannot be a folder that Photon writes in; None if it can."""
    there = next(p for p in (path, *path.parents) if p.exists() or p == Path(p.anchor))
    if not there.is_dir():
        return f"'{path}' cannot be a folder: '{there}' is a file; write another folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"'{path}' cannot be written: no permission in '{there}'; write a folder with write permission"
    return None


def _tokenizer_problem(spec: str) -> str | None:
    if spec == "bytes" or not is_tokenizer_file(spec):
        return None
    path = local_path(spec)
    if path is None:
        return _remote_problem(spec)
    if path.is_dir():
        return f"'{spec}' is a folder; write the file in it: {path / 'tokenizer.json'}"
    if not path.is_file():
        return f"'{spec}' does not exist; write 'bytes', the path of a tokenizer.json, or a Hugging Face name"
    return None


def _source_problem(source: str, options: dict[str, Any]) -> str | None:
    path = local_path(source)
    if path is None:
        return _remote_problem(source, options)
    if path.is_dir():
        if any(SOURCE_FILE.search(below.name) for below in path.rglob("*")):
            return None
        return f"'{source}' contains no readable file; put {ENDINGS} files there"
    if not glob.has_magic(str(path)) and not path.exists():
        return f"'{source}' does not exist; write the path of {ENDINGS} files, or a URL"
    matches = [Path(match) for match in local_matches(str(path))]
    files = [match for match in matches if match.is_file()]
    for file in files:
        if not SOURCE_FILE.search(file.name):
            return f"'{file}' has an unsupported ending; name only {ENDINGS} files"
        if not os.access(file, os.R_OK):
            return f"'{file}' cannot be read; change its permissions"
    return None if files else f"no file matches '{source}'; correct the pattern, or put the files there"


def _remote_problem(url: str, options: dict[str, Any] | None = None) -> str | None:
    import fsspec

    problem = protocol_problem(url)
    if problem:
        return problem
    try:
        fs, path = fsspec.url_to_fs(url, **(options or {}))
        found = bool(fs.glob(path)) if glob.has_magic(path) else fs.exists(path)
    except Exception as error:  # every filesystem raises its own errors
        return f"'{url}' cannot be reached ({told(error)}); check address and credentials"
    return None if found else f"'{url}' does not exist; correct the address, or put the files there"
