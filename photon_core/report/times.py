"""Figures of time: the timeline of a round, and the seconds of each site in every round."""

from typing import TYPE_CHECKING

from photon_core.evidence.record import PHASES, Record, busy, thin
from photon_core.formatting import duration
from photon_core.report.style import (
    COLOURS,
    FAINT,
    INK,
    PALE,
    PHASE_COLOURS,
    SOFT,
    Picture,
    draw,
    short,
)
from schemas.manifests import RoundManifest, Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

ROW = 22  # CSS pixels of a site
COLUMNS = 120  # maximum number of rounds beside each other
COORDINATOR = "coordinator"
WORDS = {"round": "at the site"}


def has_timeline(manifest: RoundManifest) -> bool:
    return bool(manifest.spans)


def straggler(manifest: RoundManifest) -> tuple[str, float] | None:
    """The site that finished last, and its delay after the median site in seconds."""
    ends = sorted((seconds, site) for site in manifest.updates if (seconds := busy(manifest, site)) is not None)
    if len(ends) < 2:
        return None
    return ends[-1][1], ends[-1][0] - ends[(len(ends) - 1) // 2][0]


def rows(manifest: RoundManifest) -> dict[str, list[Span]]:
    """The rows of a round's timeline: the sites in the order in which they finished, then the coordinator."""
    ended = manifest.seconds.get("sites", 0.0)
    aggregated = ended + manifest.seconds.get("aggregate", 0.0)
    sites = sorted(manifest.spans, key=lambda site: (site in manifest.left_out, busy(manifest, site) or 0.0, site))
    spans = {site: _with_waiting(manifest.spans[site]) for site in sites}
    for site in manifest.left_out:
        spans.setdefault(site, [Span(phase="wait", start=0.0, seconds=ended)])
    aggregate = Span(phase="aggregate", start=ended, seconds=aggregated - ended)
    spans[COORDINATOR] = _with_waiting([aggregate])
    return spans


def _with_waiting(spans: list[Span]) -> list[Span]:
    filled, clock = [], 0.0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start > clock + 0.01:
            filled.append(Span(phase="wait", start=clock, seconds=span.start - clock))
        filled.append(span)
        clock = max(clock, span.start + span.seconds)
    return filled


def gantt(manifest: RoundManifest) -> Picture | None:
    """The timeline of one round: a row for each site, with its steps from left to right."""
    if not has_timeline(manifest):
        return None
    lines = rows(manifest)
    phases = [p for p in (*PHASES, "round") if any(s.phase == p for spans in lines.values() for s in spans)]
    last = straggler(manifest)
    whole = sum(manifest.seconds.values())
    alt = f"Timeline of round {manifest.round}, {whole:.3g} s in all. "
    if last:
        alt += f"{last[0]} was last, {duration(last[1])} after the median site. "
    alt += "; ".join(f"{site}: {_words(spans)}" for site, spans in list(lines.items())[:16]) + "."

    def paint(figure: "Figure") -> None:
        from matplotlib.patches import Patch

        axes = figure.subplots()
        small = min(1.0, 16 / len(lines))
        for phase in phases:
            height = 0.34 if phase == "wait" else 0.72
            boxes = [
                (span.start, row - height / 2, max(span.seconds, whole / 500), height)
                for row, spans in enumerate(lines.values())
                for span in spans
                if span.phase == phase
            ]
            axes.add_patch(_boxes(boxes, PHASE_COLOURS[phase]))
        for row, site in enumerate(lines):
            if site in manifest.left_out:
                axes.text(0, row, " excluded", color=COLOURS[1], va="center", fontsize=12 * max(0.6, small))
        axes.axvline(manifest.seconds.get("sites", 0.0), color=FAINT, linewidth=1, linestyle=":")
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlim(0, max(whole, 1e-3))
        axes.set_yticks(range(len(lines)), [short(site, 18) for site in lines])
        for label, site in zip(axes.get_yticklabels(), lines, strict=True):
            if last and site == last[0]:
                label.set_color(INK)
                label.set_fontweight("bold")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds after the round was opened")
        figure.legend(
            handles=[Patch(facecolor=PHASE_COLOURS[p], label=WORDS.get(p, p)) for p in phases],
            loc="outside upper left", ncols=4, frameon=False, fontsize=12, handlelength=0.9, handleheight=0.9,
            columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip

    name, title = f"round-{manifest.round}", f"Round {manifest.round}"
    if last:
        title += f": {short(last[0], 40)} was last, {duration(last[1])} after the median site"
    return draw(name, title, alt, 90 + ROW * len(lines), paint)


def _boxes(boxes: list[tuple[float, float, float, float]], colour: str) -> "PathPatch":
    """Rectangles (x, y, width, height) as one element: thousands of elements make a page slow and large."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)] for x, y, w, h in boxes]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
    return PathPatch(Path([corner for box in corners for corner in box], codes), facecolor=colour, linewidth=0)


def _words(spans: list[Span]) -> str:
    return ", ".join(f"{span.phase} {span.seconds:.2g} s" for span in spans if span.seconds >= 0.05)


def site_seconds(record: Record) -> Picture | None:
    """The seconds that each round waited for each site. The straggler is the dark row."""
    rounds = thin(record.trained, COLUMNS)
    sites = [site for site in record.sites if any(busy(m, site) is not None for m in rounds)]
    if not sites or not rounds:
        return None
    last = straggler(rounds[-1])
    alt = "Seconds until each site's update was committed, by round and site; darker is longer. " + (
        f"In round {rounds[-1].round} {last[0]} was last, {duration(last[1])} after the median site."
        if last
        else ""
    )

    def paint(figure: "Figure") -> None:
        import numpy as np
        from matplotlib.colors import LinearSegmentedColormap

        axes = figure.subplots()
        values = np.array([[_or_nan(busy(m, site)) for m in rounds] for site in sites])
        colours = LinearSegmentedColormap.from_list("seconds", [PALE, "#56B4E9", "#0072B2", "#0b2545"])
        edges = np.arange(len(rounds) + 1)
        mesh = axes.pcolormesh(edges, np.arange(len(sites) + 1), values, cmap=colours, vmin=0, rasterized=True)
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=12, shrink=0.9)
        bar.outline.set_visible(False)
        bar.set_label("seconds", color=SOFT, fontsize=12)
        axes.invert_yaxis()
        step = max(1, len(sites) // 24)
        axes.set_yticks(np.arange(len(sites))[::step] + 0.5, [short(site) for site in sites[::step]])
        _round_ticks(axes, rounds)
        axes.grid(visible=False)
        for x, y in _excluded(rounds, sites):
            axes.text(x + 0.5, y + 0.5, "×", color=COLOURS[1], ha="center", va="center", fontsize=10)

    return draw("seconds", "Time of each site in every round", alt, 90 + min(ROW * (len(sites) + 1), 440), paint)


def _round_ticks(axes: "Axes", rounds: list[RoundManifest]) -> None:
    places = thin(range(len(rounds)), 8)
    axes.set_xticks([place + 0.5 for place in places], [str(rounds[place].round) for place in places])
    axes.set_xlabel("round")


def _excluded(rounds: list[RoundManifest], sites: list[str]) -> list[tuple[int, int]]:
    """(round, site) of the excluded sites, as positions in the lists."""
    places = [(x, sites.index(site)) for x, m in enumerate(rounds) for site in m.left_out if site in sites]
    return places[:400]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
