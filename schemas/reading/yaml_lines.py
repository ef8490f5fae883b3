"""A YAML reader that keeps every key's line, refuses duplicate keys, and reads numbers as people write them."""

import re
from typing import Any

import yaml

from schemas.errors import FederationError

Key = tuple[str | int, ...]
MAX_NODES = 100_000  # a file has a few hundred; more means a chain of aliases that expands without end

REMEDIES = (
    ("'\\t'", "YAML does not allow this tab; indent with spaces only"),
    (
        "mapping values are not allowed",
        "YAML does not allow this ':'; check the indentation, or quote the text",
    ),
    ("could not find expected ':'", "a key has no ':'; write `key: value`"),
    ("unexpected end of stream", "a quote is opened and never closed; close it"),
    ("expected <block end>", "the indentation does not match the lines above; align the keys of a section"),
    (
        "expected ',' or",
        "a bracket or brace is opened and never closed; close it, and write ',' between the entries",
    ),
    ("expected alphabetic or numeric", "a text begins with '*' or '&'; put it in quotes, such as '*.txt'"),
    ("undefined alias", "no '&' defines the name after '*'; define it above, or quote the text"),
    ("found another document", "a second document begins at '---'; write one federation per file"),
    (
        "could not determine a constructor",
        "a federation file has no '!' tags; write a plain value",
    ),
    ("special characters are not allowed", "it contains a control character; the file must be plain text"),
)


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's scalars: 3e-4 is a number; no, on and 2026-01-31 are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own shape)

    def whole(self, node: yaml.ScalarNode) -> int:
        text = node.value.replace("_", "")
        return int(text, 0 if re.match(r"[-+]?0[xo]", text) else 10)

    def real(self, node: yaml.ScalarNode) -> float:
        return float(node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


_PLAIN = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
for _tag, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.real)


def read_yaml(text: str, file: str) -> tuple[Any, dict[Key, int]]:
    """The file's value, and the line (from 1) of every key and list entry, by its path of keys.

    Args:
        text: YAML text.
        file: name of the file, for messages.

    Raises:
        FederationError: the text is not YAML, a key is repeated or is not text, or aliases expand without end; the
            message names the line.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Key, int] = {}
        _walk(node, (), lines, file, [0], ())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise FederationError(f"{file}:{line}: not YAML: {_remedy(error.problem or str(error))}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FederationError(f"{file}:{line}: not YAML: {_remedy(error.reason)}") from None
    except RecursionError:
        raise FederationError(f"{file}: nested too deeply; a federation file has a few levels") from None
    finally:
        if loader is not None:
            loader.dispose()


def _remedy(problem: str) -> str:
    for sign, remedy in REMEDIES:
        if sign in problem:
            return remedy
    return f"{problem}; check the indentation, quotes and brackets here and on the line above"


def _walk(
    node: yaml.Node, path: Key, lines: dict[Key, int], file: str, count: list[int], above: tuple[int, ...]
) -> None:
    """Note the line of every key below node. A merged key ('<<') has the line where it is written."""
    line = node.start_mark.line + 1
    count[0] += 1
    if count[0] > MAX_NODES or id(node) in above:
        raise FederationError(f"{file}:{line}: the aliases ('*') here expand without end; write the values out")
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            _walk(item, (*path, index), lines, file, count, above)
    elif isinstance(node, yaml.MappingNode):
        own: dict[str, int] = {}
        for key, value in node.value:
            at = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                for below in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged: dict[Key, int] = {}
                    _walk(below, path, merged, file, count, above)
                    lines.update({k: v for k, v in merged.items() if k not in lines})
                continue
            if key.tag != "tag:yaml.org,2002:str":
                shown = getattr(key, "value", "") or "an empty key"
                shown = shown if isinstance(shown, str) else "a list or mapping"
                raise FederationError(f"{file}:{at}: {shown} is not a key; keys are words, such as rounds")
            if key.value in own:
                dotted = ".".join(str(part) for part in (*path, key.value))
                raise FederationError(
                    f"{file}:{at}: {dotted}: is written twice, on lines {own[key.value]} and {at}; keep one"
                )
            own[key.value] = at
            lines[*path, key.value] = at
            _walk(value, (*path, key.value), lines, file, count, above)
