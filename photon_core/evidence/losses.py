"""Losses of a tree's own models, round by round of the first file: those of sites, of federations, of the root."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from photon_core.evidence.metrics import perplexity
from photon_core.evidence.nodes import OWN_LOSS, Names
from photon_core.evidence.tree import Tree

Line = list[tuple[int, float]]  # (round of the first file's run, value)


def federation_losses(tree: Tree) -> dict[Names, Line]:
    """Path -> loss of each federation's own model on the held-out text of all sites below it.

    Of several rounds in one round of the first file, the last counts.
    """
    found = {}
    for names, line in tree.lines.items():
        values = [(tree.place(names, m.round), m.metrics["loss"]) for m in line if "loss" in m.metrics]
        if placed := _placed(values):
            found[names] = placed
    return found


def site_losses(tree: Tree) -> dict[Names, Line]:
    """Path -> loss of each site's own model on its held-out text, before averaging."""
    found: dict[Names, Line] = {}
    for names, line in tree.lines.items():
        for site in dict.fromkeys(name for manifest in line for name in manifest.updates):
            values = [
                (tree.place(names, m.round), m.updates[site].metrics[OWN_LOSS])
                for m in line
                if site in m.updates and OWN_LOSS in m.updates[site].metrics
            ]
            if placed := _placed(values):
                found[*names, site] = placed
    return found


def mean_losses(lines: Mapping[Names, Line]) -> Line:
    """The mean of the newest values of all lines, from the first round in which each has one."""
    values = {names: dict(line) for names, line in lines.items()}
    newest: dict[Names, float] = {}
    found = []
    for t in sorted({t for line in values.values() for t in line}):
        newest |= {names: line[t] for names, line in values.items() if t in line}
        if len(newest) == len(values):
            found.append((t, fmean(newest.values())))
    return found


def perplexities(line: Line) -> Line:
    """The same line as perplexities."""
    return [(t, perplexity(loss)) for t, loss in line]


def _placed(values: Sequence[tuple[int | None, float]]) -> Line:
    return sorted({t: value for t, value in values if t is not None}.items())
