"""The JSON schema of the federation file, for editors. `python -m schemas.docs.json_schema` regenerates it and
docs/federation.md.

In an editor with a YAML language server, the first line of a federation file names it:
`# yaml-language-server: $schema=schemas/federation.schema.json`.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from schemas.federation import Federation, Rounds
from schemas.presets import FEDERATED_PRESETS, MODEL_PRESETS
from schemas.sections.local import Local
from schemas.sections.model import Model

PATH = Path(__file__).parents[1] / "federation.schema.json"


def federation_schema() -> dict[str, Any]:
    """Federation's schema. Keys that a preset or a recipe may set are required only without one."""
    schema = Federation.model_json_schema()
    brought = next(iter(FEDERATED_PRESETS.values()))
    shape = list(next(iter(MODEL_PRESETS.values())))
    _allow(schema, _required(Federation), [*brought, "sites"])
    _allow(schema["$defs"]["Model"], _required(Model), shape)
    _allow(schema["$defs"]["Rounds"], _required(Rounds), brought["rounds"])
    _allow(schema["$defs"]["Local"], _required(Local), {**brought["local"], "steps": None})
    without_preset: dict[str, Any] = {
        "required": [name for name in _required(Federation) if name in brought and name != "rounds"],
        "properties": {
            "model": {"anyOf": [{"required": ["preset"]}, {"required": _required(Model)}]},
            "local": {"required": [name for name in _required(Local) if name != "steps"]},
        },
    }
    sized: dict[str, Any] = {"anyOf": [_named("preset"), _named("recipe"), _silent(_SIZED)]}
    child: dict[str, Any] = {"required": ["parent"], "properties": {"parent": {"type": "object"}}}
    count: dict[str, Any] = {"required": ["rounds"], "properties": {"rounds": {"required": _required(Rounds)}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Photon federation",
        "description": "All settings of a federation. Checked by schemas/federation.py and generated from it.",
        **{key: value for key, value in schema.items() if key not in ("title", "description")},
        "allOf": [
            {"if": sized, "else": without_preset},
            {"if": {"anyOf": [child, sized]}, "else": count},
            {"if": child, "then": _count("null"), "else": _count("integer")},
            {"anyOf": [_some("sites"), _some("federations")]},
            {
                "if": {"anyOf": [_named("recipe"), _silent({"not": _shape(list(MODEL_PRESETS))})]},
                "else": {"required": ["local"], "properties": {"local": {"required": ["steps"]}}},
            },
            {"not": _silent({"allOf": [_shape(list(MODEL_PRESETS)), {"not": _SIZED}]})},
        ],
    }


def text() -> str:
    return json.dumps(federation_schema(), indent=2, ensure_ascii=False) + "\n"


def _named(key: str) -> dict[str, Any]:
    return {"required": [key], "properties": {key: {"type": "string"}}}


def _count(kind: str) -> dict[str, Any]:
    """A file whose rounds.count, if it is there, has this type."""
    return {"properties": {"rounds": {"properties": {"count": {"type": kind}}}}}


def _some(key: str) -> dict[str, Any]:
    return {"required": [key], "properties": {key: {"minItems": 1}}}


def _silent(model: dict[str, Any]) -> dict[str, Any]:
    """A file without recipe and preset whose `model.preset` matches: schemas.presets.default_recipe."""
    return {"allOf": [{"not": {"required": ["recipe"]}}, {"not": _named("preset")}, model]}


def _shape(names: list[str]) -> dict[str, Any]:
    """A file whose `model.preset` is one of these."""
    preset = {"required": ["preset"], "properties": {"preset": {"enum": names}}}
    return {"required": ["model"], "properties": {"model": preset}}


_SIZED = _shape(list(FEDERATED_PRESETS))


def _required(section: type[BaseModel]) -> list[str]:
    return [name for name, field in section.model_fields.items() if field.is_required()]


def _allow(schema: dict[str, Any], required: list[str], brought: Any) -> None:
    """Require only keys that neither a preset nor a recipe sets."""
    keep = [name for name in required if name not in brought]
    schema.pop("required", None)
    if keep:
        schema["required"] = keep


if __name__ == "__main__":
    from schemas.docs import reference

    for path, content in ((PATH, text()), (reference.PATH, reference.text())):
        path.write_text(content, "utf-8")
        print(f"wrote {path}")
