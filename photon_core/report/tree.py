"""The sections of a page about a tree: its nodes, their models, their attention, what their links carry."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from photon_core.evidence.links import dropped, links, routes
from photon_core.evidence.losses import Line, federation_losses, mean_losses, perplexities, site_losses
from photon_core.evidence.metrics import show
from photon_core.evidence.nodes import Reached, mean_of_sites, unread
from photon_core.evidence.record import thin
from photon_core.evidence.tree import ROUTED, Tree
from photon_core.formatting import amount
from photon_core.report.attention import entropy_curve, heat_map, keeper_table, sentences
from photon_core.report.curves import draw_lines, last_values, plain_log
from photon_core.report.page import Fold, Section
from photon_core.report.style import COLOURS, FAINT, INK, SOFT, Picture, draw, short
from photon_core.report.tables import NOTHING, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Mapping[str, Line]
NODES = 60  # maximum number in the drawing
LAYERS = 2  # heat maps that are not folded
ROUTES = 100  # maximum number of rows
ROW = 22  # CSS pixels of a node
PATH = 60  # characters of a path in a table
ELSEWHERE = "its file is not here"


def tree_sections(tree: Tree) -> list[Section]:
    """Everything that a page shows about a tree beside its first federation."""
    maps = [picture for layer in tree.layers if (picture := heat_map(tree, layer))]
    folded = [Fold(f"{len(maps) - LAYERS} more key layers", maps[LAYERS:])] if len(maps) > LAYERS else []
    return [
        Section(
            "tree", "Tree",
            "Every node with its newest round and the perplexity of its model: a site's on its own held-out "
            "text, a federation's on that of all sites below it. Curves are by round of the first federation.",
            [drawing(tree), own_models(tree), sites_models(tree)],
            [node_table(tree), unread_table(tree)],
        ),
        Section(
            "attention", "Attention",
            "The newest weights with which each node mixed a key layer: of a federation, over its own and its "
            "members' (members); of any node, over its own, its parent's and residuals' (entry). A row sums to 1. "
            "Entropy is 0 if one row has all the weight, and the logarithm of their number if all are equal.",
            [*maps[:LAYERS], entropy_curve(tree)], [keeper_table(tree)], folded,
        ),
        Section(
            "residuals", "Residuals",
            f"Key layers that were sent to a node that they fit, in the newest {ROUTED} rounds of a federation.",
            tables=[route_table(tree), dropped_table(tree)],
        ),
        Section(
            "links", "Links",
            "Bytes between a federation and each of its members, from the sizes in the manifests. Down: models, "
            "averaged moments and residuals that the member entered with. Up: its aggregated contributions.",
            tables=[link_table(tree)],
        ),
    ]  # fmt: skip


def tree_notes(tree: Tree) -> list[str]:
    """What a reader must know first: nodes that cannot be read, and nodes that keep their own key layers."""
    return [*unread(tree.nodes), *sentences(tree)]


def drawing(tree: Tree) -> Picture | None:
    """The tree: a square for each federation, a circle for each site, with round and perplexity beside it."""
    nodes = _drawn(tree)
    alt = f"The tree of {len(tree.nodes)} nodes. " + "; ".join(_state(tree, node) for node in nodes) + "."
    title = "The tree" + (f", {len(nodes)} of {len(tree.nodes)} nodes" if len(nodes) < len(tree.nodes) else "")
    deepest = max(len(node.names) for node in nodes)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_xlim(0, 100)
        axes.set_ylim(len(nodes) - 0.4, -1.6)
        step = min(6.0, 30 / max(1, deepest))
        for x, head in ((76, "round"), (100, "perplexity")):
            axes.text(x, -1, head, ha="right", va="center", color=SOFT, fontsize=12)
        for y, node in enumerate(nodes):
            _connect(axes, nodes, y, step)
            _paint_node(axes, node, len(node.names) * step + 2, y)

    return draw("tree-nodes", title, alt, 50 + ROW * len(nodes), paint)


def own_models(tree: Tree) -> Picture | None:
    """Perplexity of the root's and regions' own models, and of the sites' own in the mean."""
    federations = {names: perplexities(line) for names, line in federation_losses(tree).items()}
    sites = perplexities(mean_losses(site_losses(tree)))
    root = federations.pop((), [])
    whole = {name: line for name, line in ((tree.name(()), root), ("sites' own, mean", sites)) if line}
    regions = {tree.name(names): line for names, line in federations.items()}
    if not whole:
        return None
    alt = "Perplexity of the models of the tree's federations, and of the mean loss of its sites' own, by round. "
    return _curves("tree-models", "Models of root, regions and sites", alt + last_values("Last", regions | whole),
                   regions, whole)  # fmt: skip


def sites_models(tree: Tree) -> Picture | None:
    """Perplexity of each site's own model on its own held-out text."""
    lines = {tree.name(names): perplexities(line) for names, line in site_losses(tree).items()}
    if not lines:
        return None
    alt = "Perplexity of each site's own model on its own held-out text, by round. " + last_values("Last", lines)
    return _curves("tree-sites", "Each site's own model", alt, lines, {})


def node_table(tree: Tree) -> Table:
    """A row for each node."""
    table = Table(
        ("node", "round", "parent's round", "own model", "sites' models", "local steps", "tokens", "state"),
        title="All nodes", fold=True,
    )  # fmt: skip
    for node in tree.nodes:
        below = None if node.is_site else mean_of_sites(tree.nodes, node.names)
        cells = (
            node.name,
            NOTHING if node.round is None else str(node.round),
            str(node.entered.round) if node.entered else "",
            _perplexity(node.perplexity),
            "" if node.is_site else _perplexity(below),
            f"{node.steps:,}",
            f"{node.tokens:,}",
            "cannot be read" if node.problem else ELSEWHERE if _is_elsewhere(tree, node) else "",
        )
        table.rows.append(Row(cells, "bad" if node.problem else ""))
    return table


def unread_table(tree: Tree) -> Table:
    """The nodes that cannot be read, with the reasons."""
    rows = [Row((node.name, node.problem), "bad") for node in tree.nodes if node.problem]
    return Table(("node", "why"), rows, title="Nodes that cannot be read", words=True)


def route_table(tree: Tree) -> Table:
    """A row for each residual that reached a node, the newest first."""
    found = routes(tree)
    rows = [
        Row(
            (
                NOTHING if route.place is None else str(route.place),
                tree.name(route.above),
                str(route.round),
                short(route.layer, PATH),
                short(tree.name(route.origin), PATH),
                tree.name(route.receiver),
                str(route.hops),
            )
        )
        for route in found[:ROUTES]
    ]
    more = len(found) - len(rows)
    head = ("round", "sent by", "in its round", "key layer", "origin", "receiver", "links")
    note = f"{more} older ones are not listed." if more else ""
    return Table(head, rows, title="Routes", words=True, note=note)


def dropped_table(tree: Tree) -> Table:
    """Residuals without a receiver, by federation and reason."""
    rows = [
        Row((tree.name(names), reason, str(number)))
        for names, reasons in dropped(tree).items()
        for reason, number in sorted(reasons.items())
    ]
    return Table(("federation", "reason", "number"), rows, title="Dropped", words=True)


def link_table(tree: Tree) -> Table:
    """A row for each link, and their sum."""
    found = links(tree)
    rows = [
        Row((f"{tree.name(link.above)} – {link.member}", str(link.rounds), *map(amount, (link.down, link.up))))
        for link in found
    ]
    if rows:
        down, up = (sum(values) for values in zip(*((link.down, link.up) for link in found), strict=True))
        rows.append(Row(("all", "", amount(down), amount(up))))
    return Table(("link", "rounds", "down", "up"), rows)


def _curves(name: str, title: str, alt: str, lines: Lines, whole: Lines) -> Picture:
    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_yscale("log")
        plain_log(axes)
        axes.set_ylabel("perplexity, held-out text")
        draw_lines(axes, lines, whole)

    return draw(name, title, alt, 330, paint)


def _drawn(tree: Tree) -> list[Reached]:
    """The nodes of the drawing: all; of a large tree, its federations."""
    if len(tree.nodes) <= NODES:
        return tree.nodes
    return thin([node for node in tree.nodes if not node.is_site], NODES)


def _connect(axes: "Axes", nodes: Sequence[Reached], y: int, step: float) -> None:
    """Draw the line from a node to its parent."""
    names = nodes[y].names
    above = next((i for i in range(y - 1, -1, -1) if nodes[i].names == names[:-1]), None)
    if names and above is not None:
        x = (len(names) - 1) * step + 2
        axes.plot([x, x, x + step], [above, y, y], color=FAINT, linewidth=1.2, zorder=1)


def _paint_node(axes: "Axes", node: Reached, x: float, y: int) -> None:
    colour = COLOURS[1] if node.problem else COLOURS[5] if node.is_site else COLOURS[0]
    axes.plot([x], [y], "o" if node.is_site else "s", markersize=8, color=colour, markeredgewidth=0, zorder=2)
    name = short(node.names[-1] if node.names else node.name, 28)
    weight = "normal" if node.is_site else "bold"
    axes.text(x + 3, y, name, va="center", color=INK, fontsize=12, fontweight=weight)
    if node.problem:
        axes.text(100, y, "cannot be read", ha="right", va="center", color=COLOURS[1], fontsize=12)
        return
    newest = NOTHING if node.round is None else str(node.round)
    for at, text in ((76, newest), (100, _perplexity(node.perplexity))):
        axes.text(at, y, text, ha="right", va="center", color=INK, fontsize=12)


def _state(tree: Tree, node: Reached) -> str:
    """A node in words."""
    if node.problem:
        return f"{node.name} cannot be read"
    if node.round is None:
        return f"{node.name}: {ELSEWHERE if _is_elsewhere(tree, node) else 'no round'}"
    value = f", perplexity {_perplexity(node.perplexity)}" if node.perplexity is not None else ""
    return f"{node.name}: round {node.round}{value}"


def _is_elsewhere(tree: Tree, node: Reached) -> bool:
    """Whether a federation keeps its file, so that only its parent's manifests are known."""
    return not node.is_site and node.names not in tree.rounds


def _perplexity(value: float | None) -> str:
    return NOTHING if value is None else show("perplexity", value)
