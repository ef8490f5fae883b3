"""photon plan of a tree: seconds of a round, node by node, bytes by link, and the surplus over flat."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from photon_cli.pages import check_page, write_page
from photon_cli.plan import PAGE, committed
from photon_cli.tables import plain_console, wide_console
from photon_core.errors import FederationError
from photon_core.evidence.nodes import path_of
from photon_core.formatting import amount, duration
from photon_core.model.shapes import parameter_count
from photon_core.plan.costs import FLOAT32, key_bytes
from photon_core.plan.tree import LinkPlan, MemberPlan, NodePlan, TreePlan, plan_tree
from photon_core.run.members import check_members
from schemas.federation import Federation
from schemas.presets import why
from schemas.reading.places import read_text
from schemas.reading.world import World
from schemas.reading.yaml_lines import read_yaml


def show_tree_plan(world: World, as_json: bool, to: Path | None) -> None:
    """Print the plan of a tree. With `to`, also write it as a page.

    Raises:
        FederationError: a run began with another recipe, the name of `to` does not end in .html, `to` may not be
            written, or a site cannot train with its hardware.
    """
    federation = world.federation
    if to is not None:
        if to.suffix != ".html":
            raise FederationError(f"--to {to}: the plan of a tree has no picture; write a name that ends in .html")
        check_page(to, [node.federation for _, node in world.nodes()])
    check_members(federation)
    because = why(read_yaml(read_text(world.file), world.file)[0])
    plan = plan_tree(world, {names: committed(node.federation) for names, node in world.nodes()})
    if as_json:
        recipe = {"recipe": federation.recipe, "recipe_because": because}
        print(json.dumps(recipe | facts(federation, plan), indent=2))
    else:
        console = wide_console()
        console.print(f"recipe {federation.recipe or 'none'}: {because}", highlight=False, markup=False)
        _print(console, federation, plan)
    if to is not None:
        with Path("/dev/null").open("w") as nowhere:
            recorder = plain_console(record=True, width=110, file=nowhere)
            _print(recorder, federation, plan)
            text = recorder.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        write_page(to, PAGE.format(run=federation.run, svg="", text=text))


def facts(federation: Federation, plan: TreePlan) -> dict[str, Any]:
    """Output of --json."""
    return {
        "parameters": parameter_count(federation.model),
        "key_layer_bytes": key_bytes(federation),
        "round_seconds": plan.seconds,
        "run_seconds": plan.run_seconds,
        "measured_round_seconds": plan.measured,
        "round_bytes": plan.round_bytes,
        "flat_round_bytes": plan.flat_bytes,
        "bytes_over_flat": plan.over_flat,
        "nodes": [_node_facts(node) for node in plan.root.below()],
        "links": [_link_facts(link) for link in plan.links],
    }


def _node_facts(node: NodePlan) -> dict[str, Any]:
    return {
        "node": node.name,
        "rounds_a_call": node.rounds,
        "members": [path_of(*member.names) for member in node.members],
        "sampled": node.sampled,
        "members_seconds": node.members_seconds,
        "aggregate_seconds": node.aggregate,
        "evaluate_seconds": node.evaluate,
        "round_seconds": node.round_seconds,
        "call_seconds": node.call_seconds,
        "calibrated_on_rounds": node.calibrated,
    }


def _link_facts(link: LinkPlan) -> dict[str, Any]:
    member = link.member
    return {
        "from": link.above,
        "to": path_of(*member.names),
        "times_a_round": link.times,
        "down_bytes": link.down,
        "up_bytes": link.up,
        "download_seconds": member.transfers[0],
        "upload_seconds": member.transfers[1],
        "work_seconds": member.work,
    }


def _print(console: Console, federation: Federation, plan: TreePlan) -> None:
    nodes = list(plan.root.below())
    sites = sum(member.is_site for node in nodes for member in node.members)
    keys = key_bytes(federation) // FLOAT32
    head = (
        f": {len(nodes)} federations with {sites} sites; {parameter_count(federation.model):,} parameters, "
        f"{keys:,} of them in key layers; {_source(nodes)}\n"
    )
    console.print(Text.assemble("tree of run ", (federation.run, "bold"), head))
    console.print(Text("Seconds in one round of the parent", style="bold"))
    console.print(_times(plan.root))
    console.print(Text("\nBytes by link in one round of the first file", style="bold"))
    console.print(_links(plan))
    for line in _totals(federation, plan):
        console.print(line)


def _source(nodes: list[NodePlan]) -> str:
    calibrated = [node.name for node in nodes if node.calibrated]
    return f"calibrated on rounds of {', '.join(calibrated)}" if calibrated else "from what the sites declare"


def _times(root: NodePlan) -> Table:
    names = ("node", "rounds", "members", "aggregate", "evaluate", "all rounds", "transfers", "waits")
    table = Table(*names, header_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row(root.name, *_phases(root), "", "", style="bold")
    _add_members(table, root, 1)
    return table


def _add_members(table: Table, node: NodePlan, depth: int) -> None:
    slowest = max((member.seconds or 0.0 for member in node.members), default=0.0)
    for member in node.members:
        waits = None if member.seconds is None else slowest - member.seconds
        phases = ("", "", "", "", duration(member.work)) if member.node is None else _phases(member.node)
        style = None if member.is_site else "bold"
        table.add_row(
            "  " * depth + member.names[-1], *phases, duration(_transfers(member)), duration(waits), style=style
        )
        if member.node is not None:
            _add_members(table, member.node, depth + 1)


def _phases(node: NodePlan) -> tuple[str, ...]:
    seconds = (node.members_seconds, node.aggregate, node.evaluate, node.call_seconds)
    return str(node.rounds), *map(duration, seconds)


def _transfers(member: MemberPlan) -> float | None:
    return None if member.transfers == (None, None) else member.transfer_seconds


def _links(plan: TreePlan) -> Table:
    table = Table("link", "times", "down", "up", header_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for link in plan.links:
        table.add_row(
            f"{link.above} – {link.member.names[-1]}", f"{link.times:.3g}", amount(link.down), amount(link.up)
        )
    return table


def _totals(federation: Federation, plan: TreePlan) -> list[Text]:
    """Lines below the tables: a round, the run, the surplus, what is unknown."""
    what = "a round" if federation.parent is None else f"a call of {plan.root.rounds} rounds"
    run = ""
    if plan.count:
        run = f"; all {plan.count}: {duration(plan.run_seconds)}, {amount(plan.count * plan.round_bytes)}"
    first = f"\n{what}: {duration(plan.seconds)}, {amount(plan.round_bytes)} over all links{run}"
    lines = [Text(first, style="bold")]
    if plan.measured is not None:
        lines.append(Text(f"measured: {duration(plan.measured)} a round, median of the latest rounds"))
    if plan.over_flat is not None and plan.flat_bytes:
        lines.append(
            Text(
                f"one flat federation of these sites would move {amount(plan.flat_bytes)} in as many rounds of "
                f"each site; the tree moves {plan.over_flat:.3g} times as much ({plan.over_flat - 1:+.0%})"
            )
        )
    if unknown := ", ".join(path_of(*names) for names in plan.unknown):
        text = f"not in the plan, because the file is not here: what lies below {unknown}"
        lines.append(Text(text, style="yellow"))
    if plan.without_speed:
        sites = ", ".join(path_of(*names) for names in plan.without_speed)
        text = f"no times: write hardware: {{tflops: ...}} for {sites}, or run a round to measure them"
        lines.append(Text(text, style="yellow"))
    return lines
