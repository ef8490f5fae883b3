"""The style of every figure: one palette that colour-blind people can distinguish, few lines, labels at line ends.

Text stays text in the SVG, so that a page is small and can be searched. Figures are 430 units wide: two of them
fill the width of a desktop screen, and one on a phone has letters of 10 pixels.
"""

import html
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, https://jfly.uni-koeln.de/color/, without its yellow, which is too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F3C8D")
INK, SOFT, FAINT, PALE = "#1f2933", "#64707d", "#c3cad1", "#e8ecf0"
PHASE_COLOURS = {
    "wait": PALE,
    "validate": "#CC79A7",
    "download": "#56B4E9",
    "train": "#0072B2",
    "encode": "#E69F00",
    "upload": "#D55E00",
    "aggregate": INK,
    "evaluate": "#009E73",
    "round": "#9fb6c9",
}
WIDTH = 430  # CSS pixels
DPI = 72  # of matplotlib's SVG
RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 12.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Picture:
    """One figure of a page.

    Args:
        name: identifier, unique on the page.
        title: caption.
        alt: text alternative.
        svg: SVG element, without an XML header.
    """

    name: str
    title: str
    alt: str
    svg: str


def draw(name: str, title: str, alt: str, height: float, paint: "Callable[[Figure], None]") -> Picture:
    """A figure of WIDTH x height CSS pixels, drawn by `paint`."""
    with styled(name):
        figure = new_figure(height)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(name, title, alt, _inline(buffer.getvalue(), name, alt))


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Figures have this style within the block."""
    import matplotlib

    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        yield


def new_figure(height: float) -> "Figure":
    """A figure without pyplot, which would keep it, look for a display, and take a second to import."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, layout="constrained")


def _inline(svg: str, name: str, alt: str) -> str:
    """Matplotlib's file as an element of a page: named, of any width, without parts that no browser needs."""
    body = svg[svg.index("<svg") :]
    head_end = body.index(">")
    view = re.search(r'viewBox="([^"]+)"', body[:head_end])
    assert view is not None
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body[head_end + 1 :], flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", body))
    body = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"((?:href=\"|url\()#)([\w.-]+)", rf"\1{name}-\2", body)
    body = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), body)
    body = re.sub(r"\n\s*", "\n", body).replace("xlink:href", "href")
    label = html.escape(alt, quote=True)
    return f'<svg viewBox="{view[1]}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">{body}'


def label_ends(axes: "Axes", ends: Sequence[tuple[float, float, str, str]], gap: float = 15.0) -> None:
    """Write names at the right ends of lines, without overlap.

    Args:
        axes: finished axes, with limits, scale and labels; the figure is laid out here, once.
        ends: (x, y, text, colour) of each line's last point.
        gap: minimum distance of two names, in points.
    """
    right = max(x for x, _, _, _ in ends)
    names = [
        axes.annotate(
            text, (right, y), xytext=(7, 0), textcoords="offset points", color=colour,
            va="center", ha="left", fontsize=12, annotation_clip=False,
        )
        for _, y, text, colour in ends
    ]  # fmt: skip
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the height of the axes is known only after this
    figure.set_layout_engine("none")  # no second layout: it would take a third of the drawing time
    points = [float(axes.transData.transform((x, y))[1]) for x, y, _, _ in ends]
    low, high = axes.transAxes.transform((0, 0))[1], axes.transAxes.transform((0, 1))[1]
    order = sorted(range(len(ends)), key=points.__getitem__)
    for i, place in zip(order, spread(sorted(points), gap, low, high), strict=True):
        names[i].set_position((7, place - points[i]))


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places with a distance of at least `gap`, near the old ones and none above `high`."""
    up: list[float] = []
    for place in places:
        up.append(max(place, up[-1] + gap) if up else place)
    down: list[float] = []
    for place in reversed(places):
        down.append(min(place, down[-1] - gap) if down else place)
    # neighbours have the distance `gap` in both lists, and so they have it in the mean
    moved = [(above + below) / 2 for above, below in zip(up, reversed(down), strict=True)]
    for i, place in enumerate(moved):
        moved[i] = max(place, low + i * gap)
    for i, place in enumerate(reversed(moved), 1):
        moved[-i] = min(place, high - (i - 1) * gap)
    return moved


def rounds_axis(axes: "Axes", ticks: int = 7) -> None:
    """Label the horizontal axis with whole numbers of rounds, at about `ticks` places."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
    axes.set_xlabel("round")


def short(text: str, limit: int = 16) -> str:
    """A name that fits beside a figure."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
