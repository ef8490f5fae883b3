"""photon evaluate: loss and perplexity of a node's model on held-out text."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.table import Table

from photon_cli.choice import Choice
from photon_cli.export import opened
from photon_cli.progress import display
from photon_cli.tables import wide_console
from photon_core.evidence.metrics import show
from photon_core.formatting import printable

if TYPE_CHECKING:
    from photon_core.export.evaluation import Evaluation, Score
    from photon_core.export.model import NodeModel
    from photon_core.export.node import Node

VERSION = 1  # of --json: within a version, keys are added and never change their meaning


def evaluate(node: "Node", choice: Choice, as_json: bool, quiet: bool) -> None:
    """Evaluate the chosen model, and print a row for each site at and below the node."""
    from photon_core.export.evaluation import evaluate_model, leaves_of

    leaves = leaves_of(node)
    with (
        display(quiet or as_json) as shown,
        opened(node, choice) as model,
        TemporaryDirectory(prefix="photon-model-") as scratch,
    ):
        count = len(leaves.sites)
        shown.activity("evaluate", f"the model of {node.name}, at {count} {'site' if count == 1 else 'sites'}")
        found = evaluate_model(model, leaves, Path(scratch))
        shown.finish("evaluate")
    if as_json:
        print(json.dumps(_facts(model, found)))
        return
    print(f"{node.name}, {model.origin.replace('`', '')}")
    wide_console().print(_table(found))
    for path, why in found.missing.items():
        print(printable(f"not evaluated: {path} ({why})", 1000))


def _table(found: "Evaluation") -> Table:
    """A row for each site, and one for all."""
    names = ("held-out text of", "loss", "perplexity", "tokens")
    table = Table(*names, header_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    whole = [found.whole("all")] if len(found.scores) > 1 or found.missing else []
    for one in (*found.scores, *whole):
        values = (f"{one.loss:.4f}", show("perplexity", one.perplexity), f"{one.tokens:,.0f}")
        table.add_row(one.path, *values, style="bold" if one in whole else None)
    return table


def _facts(model: "NodeModel", found: "Evaluation") -> dict[str, Any]:
    """Output of --json. docs/looking.md lists the keys that scripts may rely on."""
    node = model.node
    return {
        "version": VERSION,
        **_values(found.whole(node.name)),
        "site": node.view is not None,
        "run": node.federation.run,
        "round": model.round,
        "state": model.state,
        "model_sha256": model.source.sha256,
        "leaves": [_values(one) for one in found.scores],
        "missing": [{"node": path, "reason": why} for path, why in found.missing.items()],
    }


def _values(one: "Score") -> dict[str, Any]:
    return {"node": one.path, "loss": one.loss, "perplexity": one.perplexity, "tokens": int(one.tokens)}
