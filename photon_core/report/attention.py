"""Who attends to whom in a tree: weights of key layers as heat maps, entropies, nodes that keep their own."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from photon_core.aggregation.attention import entropy
from photon_core.aggregation.choice import PARENT
from photon_core.aggregation.residuals import row_name
from photon_core.evidence.losses import Line
from photon_core.evidence.nodes import Names
from photon_core.evidence.record import thin
from photon_core.evidence.tree import CALLS, Call, Tree
from photon_core.report.curves import draw_lines, last_values
from photon_core.report.style import COLOURS, INK, PALE, Picture, draw, short
from photon_core.report.tables import Row, Table
from schemas.manifests import Attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layers = Mapping[str, Attention]
MEMBERS, ENTRY = "members", "entry"  # the two pools of a node: with its members' rows, and with its parent's
MOST = 0.99  # own weight of a node that is named if it has it in the last CALLS calls
ROWS, COLUMNS = 40, 40  # maximum numbers in a heat map
NUMBERS = 12  # maximum number of columns with numbers in the squares
LONGEST = 60  # characters of a path in the words of a figure


class Query(NamedTuple):
    """A node's newest weights over the pool of one key layer: path of a node -> its weight."""

    node: Names
    pool: str
    weights: dict[Names, float]


class Keeper(NamedTuple):
    """A node whose key layers stay its own: its pool, and the layers."""

    node: Names
    pool: str
    layers: list[str]


def queries(tree: Tree, layer: str) -> list[Query]:
    """The newest weights of one key layer, node by node."""
    return [
        Query(node, pool, _weights(tree, node, call, mixed[layer]))
        for (node, pool), calls in _pools(tree)
        for call, mixed in calls[-1:]
        if layer in mixed
    ]


def keepers(tree: Tree) -> list[Keeper]:
    """The nodes with an own weight over MOST in each of the last CALLS calls.

    A temperature of 0 keeps the own row by definition, so it names nobody, unless the node has chosen it.
    """
    found = []
    for (node, pool), calls in _pools(tree):
        last = [mixed for _, mixed in calls[-CALLS:]]
        kept = [layer for layer in (last[-1] if last else ()) if all(_keeps(mixed.get(layer)) for mixed in last)]
        if kept and len(last) == CALLS:
            found.append(Keeper(node, pool, sorted(kept)))
    return found


def entropies(tree: Tree) -> dict[Names, Line]:
    """Path of a federation -> entropy of its weights over its members' pool, mean over its key layers."""
    found = {}
    for names, calls in _by_place(tree).items():
        if calls:
            found[names] = [(t, fmean(entropy(a.weights) for a in mixed.values())) for t, mixed in calls]
    return found


def sentences(tree: Tree) -> list[str]:
    """The keepers, a sentence each."""
    return [
        f"{tree.name(node)} keeps its own key layers: in the last {CALLS} calls, over {MOST:.0%} of the weight "
        f"was on its own row {_when(pool)} ({', '.join(kept)})."
        for node, pool, kept in keepers(tree)
    ]


def keeper_table(tree: Tree) -> Table:
    rows = [Row((tree.name(node), _when(pool), ", ".join(kept)), "bad") for node, pool, kept in keepers(tree)]
    title = f"Own weight over {MOST:.0%} in the last {CALLS} calls"
    return Table(("node", "pool", "key layers"), rows, title=title, words=True)


def heat_map(tree: Tree, layer: str) -> Picture | None:
    """The newest weights of one key layer: a row for each pool, a column for each node in one of the pools."""
    found = queries(tree, layer)
    if not found:
        return None
    rows = sorted(found, key=lambda query: query.node not in tree.rounds)[:ROWS] if len(found) > ROWS else found
    order = [node.names for node in tree.nodes]
    seen = {node for query in rows for node in query.weights}
    columns = thin([*(names for names in order if names in seen), *sorted(seen - set(order))], COLUMNS)
    names = [f"{short(tree.name(query.node), 18)} ({query.pool})" for query in rows]
    alt = f"Weights of key layer {layer}, each pool's newest. " + " ".join(_words(tree, query) for query in rows)

    def paint(figure: "Figure") -> None:
        import numpy as np
        from matplotlib.colors import LinearSegmentedColormap

        axes = figure.subplots()
        values = np.array([[query.weights.get(names, np.nan) for names in columns] for query in rows])
        colours = LinearSegmentedColormap.from_list("weights", [PALE, COLOURS[5], COLOURS[0], "#0b2545"])
        edges = np.arange(len(columns) + 1)
        axes.pcolormesh(edges, np.arange(len(rows) + 1), values, cmap=colours, vmin=0, vmax=1, edgecolors="white",
                        linewidth=1.0)  # fmt: skip
        for y, x in zip(*np.nonzero(np.isfinite(values)), strict=True):
            if len(columns) <= NUMBERS:
                weight = float(values[y, x])
                axes.text(x + 0.5, y + 0.5, f"{weight:.2f}", ha="center", va="center", fontsize=9,
                          color="white" if weight > 0.5 else INK)  # fmt: skip
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(rows)) + 0.5, names, fontsize=10)
        labels = [short(tree.name(names), 18) for names in columns]
        axes.set_xticks(edges[:-1] + 0.5, labels, rotation=45, ha="left", fontsize=10)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)

    title = f"Weights of {layer}" + (f", {len(rows)} of {len(found)} pools" if len(rows) < len(found) else "")
    return draw(f"attention-{layer}", title, alt, 120 + 22 * len(rows), paint)


def entropy_curve(tree: Tree) -> Picture | None:
    """The entropy of each federation's weights over rounds."""
    lines = {tree.name(names): line for names, line in entropies(tree).items()}
    if not lines:
        return None
    alt = (
        "Entropy of the weights over own and members' key layers, in nats, mean over the key layers, by round. "
        + last_values("By federation", lines)
    )

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_ylabel("entropy of the weights, nats")
        draw_lines(axes, lines, {}, low=0.0)

    return draw("entropy", "Entropy of the weights", alt, 290, paint)


def _pools(tree: Tree) -> Iterator[tuple[tuple[Names, str], list[tuple[Call | None, Layers]]]]:
    """Every pool of every node: its calls with their attention, the newest last."""
    members = _by_place(tree)
    for node in tree.nodes:
        if calls := members.get(node.names):
            yield (node.names, MEMBERS), [(None, mixed) for _, mixed in calls]
        entries = [(entry.call, tree.mixed(entry.attention)) for entry in tree.entries(node.names)]
        if any(mixed for _, mixed in entries):
            yield (node.names, ENTRY), [(call, mixed) for call, mixed in entries if mixed]


def _by_place(tree: Tree) -> dict[Names, list[tuple[int, Layers]]]:
    """Path of a federation -> (round of the first file, its weights over own and members), in order.

    Of several rounds in one round of the first file, the last counts.
    """
    found: dict[Names, list[tuple[int, Layers]]] = {}
    for names, line in tree.lines.items():
        mixed = [(tree.place(names, m.round), tree.mixed(m.attention)) for m in line]
        placed: dict[int, Layers] = {place: one for place, one in mixed if one and place is not None}
        found[names] = sorted(placed.items())
    return found


def _weights(tree: Tree, node: Names, call: Call | None, mixed: Attention) -> dict[Names, float]:
    found: dict[Names, float] = {}
    names = [node, *(_row(tree, node, call, row) for row in mixed.rows[1:])]
    for name, weight in zip(names, mixed.weights, strict=True):
        found[name] = found.get(name, 0.0) + weight
    return found


def _row(tree: Tree, node: Names, call: Call | None, row: str) -> Names:
    """Path of the node whose key layer is a row of a pool, after the own row."""
    if call is None:
        return (*node, row)
    if row == PARENT:
        return call.above
    sent = {row_name(residual): residual for residual in tree.sent.get(call, ())}
    if row in sent:
        return tree.origin(call.above, call.round, sent[row])
    return (*call.above, *row.partition("@")[0].split("/"))


def _keeps(mixed: Attention | None) -> bool:
    return (
        mixed is not None
        and (mixed.tau > 0 or mixed.chosen != "")
        and len(mixed.weights) > 1
        and mixed.weights[0] > MOST
    )


def _when(pool: str) -> str:
    return "after its members" if pool == MEMBERS else "at entry"


def _words(tree: Tree, query: Query) -> str:
    top: Sequence[tuple[Names, float]] = sorted(query.weights.items(), key=lambda item: -item[1])[:3]
    return (
        f"{tree.name(query.node)} {_when(query.pool)}: "
        + ", ".join(f"{short(tree.name(node), LONGEST)} {weight:.2f}" for node, weight in top)
        + "."
    )
