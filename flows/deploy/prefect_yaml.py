"""A plan as a prefect.yaml: its deployments, and a header that lists what a prefect.yaml cannot contain.

Pure, like flows/deploy/catalogue.py: nothing here imports Prefect or calls a server.
"""

import json
import re
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import yaml

from flows.deploy.catalogue import COLLISION_STRATEGY, Deployment, Plan
from photon_core.errors import FederationError
from photon_core.run.provenance import versions

WIDTH = 115
TEMPLATE = re.compile(r"\{\{\s*[\w.\-\[\]$]+\s*\}\}")  # text that Prefect fills in, here and at the worker
FEDERATION = "federation"
MORE = (
    "`photon deploy FILE` does the same and more. `prefect deploy` removes nothing, not even a schedule that the "
    "file no longer has. It also reactivates a schedule that was paused in the UI."
)
POOLS = "Work pools. Create the missing ones first:"
AUTOMATIONS = "Automations. Only `photon deploy FILE` creates them:"
REFERENCES = (
    "Job variables that refer to blocks or variables. They are not in this file, because `prefect deploy` would "
    "write their values into the deployments. Set them in the environment of the workers; `photon join` does so "
    "for storage.block:"
)


class _Dumper(yaml.SafeDumper):
    """Names each anchor after its definition."""

    def serialize(self, node: Any) -> None:
        found = next(value for key, value in node.value if key.value == "definitions")
        self.names = {value: key.value for key, value in found.value}
        super().serialize(node)

    def generate_anchor(self, node: Any) -> str:
        return self.names[node]


def prefect_yaml(plan: Plan) -> str:
    """Text of a prefect.yaml with which `prefect deploy --all` makes the plan's deployments.

    Raises:
        FederationError: a text of the file looks like a template, which `prefect deploy` would fill in.
    """
    left_out: dict[str, None] = {}  # an ordered set
    federation = _plain(plan.deployments[0].parameters[FEDERATION])
    for site in federation["sites"]:
        site["job_variables"] = _without_references(site["job_variables"], (), {})
    if place := next(_templates(federation, ""), None):
        raise FederationError(
            f"{place}: contains a template in double braces, which `prefect deploy` would fill in; remove it, or "
            "write photon deploy FILE without --yaml"
        )
    definitions = {FEDERATION: federation}  # environments are added below
    deployments = [_entry(wanted, definitions, left_out) for wanted in plan.deployments]
    body = yaml.dump(
        {"pull": [], "definitions": definitions, "deployments": deployments},
        Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=WIDTH,
    )  # fmt: skip
    return "\n".join([*_header(plan, list(left_out)), body])


def _entry(wanted: Deployment, definitions: dict[str, Any], left_out: dict[str, None]) -> dict[str, Any]:
    """A deployment's entry in prefect.yaml. Its federation and environment refer to the definitions."""
    variables = _without_references(_plain(wanted.job_variables), (), left_out)
    environment = variables["env"]
    name = next((name for name, there in definitions.items() if there == environment), "")
    if not name:
        name = f"environment-{len(definitions)}" if len(definitions) > 1 else "environment"
        definitions[name] = environment
    return {
        "name": wanted.name,
        "version": versions()["photon"],
        "entrypoint": wanted.entrypoint,
        "description": wanted.description,
        "tags": list(wanted.tags),
        "work_pool": {"name": wanted.pool, "job_variables": {**variables, "env": definitions[name]}},
        "parameters": {**wanted.parameters, FEDERATION: definitions[FEDERATION]},
        **({"schedules": [{"cron": wanted.cron, "timezone": wanted.timezone}]} if wanted.cron else {}),
        **(
            {"concurrency_limit": {"limit": wanted.limit, "collision_strategy": COLLISION_STRATEGY}}
            if wanted.limit
            else {}
        ),
    }


def _plain(value: Any) -> Any:
    """A copy through JSON in which no object is shared: YAML would write a shared object as an alias."""
    return json.loads(json.dumps(value))


def _without_references(
    variables: dict[str, Any], at: tuple[str, ...], left_out: dict[str, None]
) -> dict[str, Any]:
    """Job variables without those that contain a template, whose names and texts are added to `left_out`."""
    kept: dict[str, Any] = {}
    for name, value in variables.items():
        if isinstance(value, dict) and "$ref" not in value:
            kept[name] = _without_references(value, (*at, name), left_out)
        elif name == "$ref" or next(_templates(value, name), None):
            left_out[json.dumps({".".join((*at, name)): value})[1:-1]] = None
        else:
            kept[name] = value
    return kept


def _templates(value: Any, at: str) -> Iterator[str]:
    """Places in a value of templates, and of mappings that refer to a whole block ($ref)."""
    if (isinstance(value, str) and TEMPLATE.search(value)) or (isinstance(value, dict) and "$ref" in value):
        yield at
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from _templates(below, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for i, below in enumerate(value):
            yield from _templates(below, f"{at}[{i}]")


def _header(plan: Plan, left_out: list[str]) -> Iterator[str]:
    """Comment lines at the top of the file."""
    yield f"# Deployments of run {plan.run}, for `prefect deploy --all --no-prompt` where Photon is installed."
    yield "# Written by `photon deploy FILE --yaml`. Repeat the command when the federation file changes."
    yield "#"
    yield from _comment(MORE)
    yield "# A prefect.yaml cannot contain the following."
    yield from _section(POOLS, [f"prefect work-pool create {pool.name} --type {pool.type}" for pool in plan.pools])
    yield from _section(AUTOMATIONS, [f"{a.name}: {a.description}" for a in plan.automations])
    if left_out:
        yield from _section(REFERENCES, left_out)
    yield ""


def _section(title: str, lines: list[str]) -> Iterator[str]:
    yield "#"
    yield from _comment(title)
    yield from (f"#   {line}" for line in lines)


def _comment(text: str) -> Iterator[str]:
    yield from (f"# {line}" for line in wrap(text, WIDTH - 2))
