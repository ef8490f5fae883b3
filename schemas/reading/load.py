"""Read a federation file: YAML in, a checked Federation out, or all problems at once, each with its line."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.paths import check_paths, check_store, resolve, resolve_remote
from schemas.reading.places import local_path, read_text
from schemas.reading.problems import describe, locate
from schemas.reading.yaml_lines import Key, read_yaml
from schemas.secrets import find_secrets

__all__ = ["FederationError", "check_paths", "check_store", "load_federation"]


def load_federation(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Federation:
    """Read and check a federation file.

    Local paths in it (store, tokenizer, sources, state_dir) become absolute: '~' is expanded, and relative paths
    start at the file's folder. A site without state_dir gets <folder>/photon-sites/<run>/<site>.

    Args:
        path: path of the YAML file, or its URL.
        overrides: values that override the file's, nested as in the file or with dotted keys
            ({"rounds.count": 3} or {"rounds": {"count": 3}}).
        options: keyword arguments for fsspec, for a URL.

    Raises:
        FederationError: the file is wrong; one line for each problem: file, line, key, value, remedy.
    """
    file = str(path)
    data, lines = read_yaml(read_text(path, options), file)
    if data is None:
        raise FederationError(
            f"{file}: the file is empty; write at least run, store, tokenizer, model, rounds, local and sites"
        )
    if not isinstance(data, dict):
        raise FederationError(f"{file}:1: the file is not a mapping; write keys such as `run: my-run`")
    overridden: set[Key] = set()
    for key, value in (overrides or {}).items():
        data = _override(data, tuple(key.split(".")), value, overridden, file)
    if secrets := list(find_secrets(data)):  # first, and only these: no other message may repeat their values
        texts = [locate(s.place, s.message, data, file, lines, frozenset(overridden)) for s in secrets]
        raise FederationError("\n".join(texts))
    here = local_path(file)
    data_here = resolve_remote(data, file) if here is None else resolve(data, here.expanduser().absolute().parent)
    try:
        return Federation.model_validate(data_here)
    except ValidationError as error:
        raise FederationError("\n".join(describe(error, data, file, lines, frozenset(overridden)))) from None


def _override(
    data: dict[str, Any], place: tuple[str, ...], value: Any, overridden: set[Key], file: str, at: Key = ()
) -> dict[str, Any]:
    """data with value at place. Sections on the path to it are copied, not changed."""
    first, *rest = place
    below, here = data.get(first), (*at, first)
    if rest or (isinstance(value, Mapping) and isinstance(below, dict)):
        if below is not None and not isinstance(below, dict):
            dotted = ".".join(str(part) for part in (*here, *rest))
            raise FederationError(
                f"{file}: {dotted}: cannot be overridden, {first} is not a section; edit the file"
            )
        items = {tuple(rest): value} if rest else {(k,): v for k, v in value.items()}
        section: dict[str, Any] = dict(below or {})
        for key, item in items.items():
            section = _override(section, key, item, overridden, file, here)
        return {**data, first: section}
    overridden.add(here)
    return {**data, first: value}
