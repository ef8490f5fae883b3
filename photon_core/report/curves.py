"""Figures over rounds: perplexity, losses, norms, cosines, traffic, time."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from photon_core.evidence.record import Record, series, thin, traffic
from photon_core.formatting import amount
from photon_core.report.style import COLOURS, FAINT, INK, SOFT, Picture, draw, label_ends, rounds_axis, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 200  # maximum number in a line
LINES = len(COLOURS)  # maximum number of sites with a line each; more sites are shown as a band
OUTLIERS = 2  # number of sites named beside a band

Line = list[tuple[int, float]]  # (round, value)


def perplexity(record: Record) -> Picture | None:
    """The perplexity of the global model on held-out text, over all sites and at each site."""
    sites = {site: line for site in record.sites if (line := _evaluated(record, site, "perplexity"))}
    return _perplexity(record, "perplexity", "Perplexity of the global model", "site", sites)


def domains(record: Record) -> Picture | None:
    """The same perplexity by domain; None if every site is its own domain.

    A domain is the streams of one name at all sites.
    """
    streams = [[stream["name"] for stream in site["streams"]] for site in record.federation.get("sites", [])]
    all_domains = {name for names in streams for name in names}
    if len(all_domains) == len(streams) and all(len(names) == 1 for names in streams):
        return None
    lines = {name: line for name in sorted(all_domains) if (line := series(record.line, f"perplexity/{name}"))}
    return _perplexity(record, "domains", "Perplexity by domain", "domain", lines) if lines else None


def _perplexity(record: Record, name: str, title: str, kind: str, lines: Mapping[str, Line]) -> Picture | None:
    whole = series(record.line, "perplexity")
    if not whole:
        return None
    best = min(whole, key=lambda point: point[1])
    alt = (
        f"Perplexity of the global model on held-out text, by round: {whole[0][1]:.4g} after round {whole[0][0]}, "
        f"{whole[-1][1]:.4g} after round {whole[-1][0]}; lowest {best[1]:.4g} in round {best[0]}. "
        + last_values(f"By {kind}", lines)
    )

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_yscale("log")
        plain_log(axes)
        axes.set_ylabel("perplexity, held-out text")
        draw_lines(axes, lines, {f"all {kind}s": whole})

    return draw(name, title, alt, 330, paint)


def before_and_after(record: Record) -> Picture | None:
    """Each site's loss at the end of its local steps, and the averaged model's loss on its held-out text."""
    local = {site: line for site in record.sites if (line := _local(record, site))}
    after = {site: _evaluated(record, site, "loss") for site in local}
    shown = thin(sorted(local, key=lambda site: -local[site][-1][1]), 12) if len(local) > 12 else list(local)
    if not shown:
        return None
    held_out = any("valid_loss" in update.metrics for m in record.trained for update in m.updates.values())
    before = "its own model before averaging" if held_out else "its last local step"
    alt = (
        f"Loss of each site by round: {before}, and the averaged model on the site's held-out text. "
        + last_values("Before", {site: local[site] for site in shown})
        + last_values(" After", {site: after[site] for site in shown if after[site]})
    )
    columns = min(len(shown), 2 if len(shown) <= 4 else 3)
    rows = -(-len(shown) // columns)

    def paint(figure: "Figure") -> None:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, site in zip(grid.flat, shown, strict=False):
            plot(axes, local[site], COLOURS[1], 1.6)
            if after[site]:
                plot(axes, after[site], COLOURS[0], 1.6)
            axes.set_title(short(site, 36 // columns), fontsize=12, loc="left", color=INK)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            rounds_axis(axes, 8 // columns)
        figure.supylabel("loss, nats per token", fontsize=12, color=SOFT)
        figure.legend(
            handles=[_handle(COLOURS[1], "its own model, before"), _handle(COLOURS[0], "averaged, after")],
            loc="outside upper left", ncols=2, frameon=False, fontsize=12,
        )  # fmt: skip

    return draw(
        "losses", "Each site's loss, before and after averaging", alt, 60 + rows * max(195 - 30 * rows, 88), paint
    )


def norms(record: Record) -> Picture | None:
    """The norms of the sites' updates, and of their mean."""
    sites = _by_site(record, "delta_norm/")
    mean = series(record.trained, "pseudo_gradient_norm")
    if not sites or not mean:
        return None
    alt = (
        f"L2 norm of the sites' updates and of their mean, by round. The mean's is {mean[-1][1]:.4g} in round "
        f"{mean[-1][0]}. " + last_values("By site", sites)
    )

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_ylabel("norm of the update")
        draw_lines(axes, sites, {"their mean": mean}, low=0.0)

    return draw("norms", "Norms of the sites' updates", alt, 290, paint)


def cosines(record: Record) -> Picture | None:
    """The cosine between each site's update and the mean of all."""
    sites = _by_site(record, "cosine/")
    if not sites:
        return None
    alt = "Cosine between each site's update and the mean of all, by round. " + last_values("By site", sites)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        low = min(value for line in sites.values() for _, value in line)
        axes.set_ylabel("cosine with the mean")
        draw_lines(axes, sites, {}, low=min(0.0, 1.1 * low), high=1.0)

    return draw("cosines", "Cosine with the mean update", alt, 290, paint)


def bytes_moved(record: Record) -> Picture | None:
    """Bytes moved so far by this run, and by data-parallel training of the same steps."""
    sums = traffic(record)
    if not sums or not sums[-1][0]:
        return None
    ours = [(t, used) for t, (used, _) in enumerate(sums, 1)]
    theirs = [(t, would) for t, (_, would) in enumerate(sums, 1) if would]
    alt = f"Bytes moved so far: {amount(ours[-1][1])}." + (
        f" Data-parallel training of the same steps: {amount(theirs[-1][1])}, "
        f"{theirs[-1][1] / ours[-1][1]:.3g} times as much." if theirs else ""
    )  # fmt: skip

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes = figure.subplots()
        axes.set_yscale("log")
        ends = [(*ours[-1], "this run", COLOURS[0])]
        plot(axes, ours, COLOURS[0], 2.4)
        if theirs:
            plot(axes, theirs, SOFT, 2.0, dashed=True)
            ends.append((*theirs[-1], "data-parallel", SOFT))
            axes.fill_between(*_xy(theirs), _xy(ours)[1][-len(theirs) :], color=FAINT, alpha=0.18, linewidth=0)
        values = [value for line in (ours, theirs) for _, value in line]
        axes.set_ylim(min(values) / 2, max(values) * 2)
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        rounds_axis(axes)
        label_ends(axes, ends)

    return draw("bytes", "Bytes moved", alt, 260, paint)


def speed(record: Record) -> Picture | None:
    """Tokens per second of each site during its training."""
    sites = {
        site: [
            (m.round, m.updates[site].metrics["tokens_per_second"])
            for m in record.trained
            if site in m.updates and "tokens_per_second" in m.updates[site].metrics
        ]
        for site in record.sites
    }
    sites = {site: line for site, line in sites.items() if line}
    if not sites:
        return None
    alt = "Tokens per second of each site while it trains, by round. " + last_values("By site", sites)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_ylabel("tokens per second")
        draw_lines(axes, sites, {}, low=0.0)

    return draw("speed", "Speed of the sites", alt, 260, paint)


def draw_lines(
    axes: "Axes",
    sites: Mapping[str, Line],
    whole: Mapping[str, Line],
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Draw a line for each site with its name at the end, or for many sites their range. `whole` is highlighted.

    Args:
        axes: empty axes.
        sites, whole: lines by name.
        low, high: limits of the values; by default the data's.
    """
    last = max(t for line in (*sites.values(), *whole.values()) for t, _ in line)
    ends: list[tuple[float, float, str, str]] = []
    if len(sites) <= LINES:
        for (site, line), colour in zip(sites.items(), COLOURS, strict=False):
            plot(axes, line, colour, 1.5)
            ends.append((*line[-1], short(site), colour))
    else:
        ends += _band(axes, sites, last)
    for name, line in whole.items():
        plot(axes, line, INK, 3.0)
        ends.append((*line[-1], name, INK))
    if low is not None and high is None:  # room above, for the names of the highest lines
        high = 1.08 * max(value for line in (*sites.values(), *whole.values()) for _, value in line) or None
    axes.set_ylim(low, high)
    rounds_axis(axes)
    label_ends(axes, ends)


def _band(axes: "Axes", sites: Mapping[str, Line], last: int) -> list[tuple[float, float, str, str]]:
    """Draw the range and the middle half of many sites, and the sites farthest from the median by name."""
    import numpy as np

    values = {site: dict(line) for site, line in sites.items()}
    rounds = thin(sorted({t for line in values.values() for t in line}), POINTS)
    columns = [[line[t] for line in values.values() if t in line] for t in rounds]
    low, first, middle, third, high = np.array([np.quantile(c, (0, 0.25, 0.5, 0.75, 1)) for c in columns]).T
    axes.fill_between(rounds, low, high, color=COLOURS[5], alpha=0.20, linewidth=0)
    axes.fill_between(rounds, first, third, color=COLOURS[0], alpha=0.25, linewidth=0)
    axes.plot(rounds, middle, color=COLOURS[0], linewidth=1.5)
    ends = [(float(last), float(middle[-1]), f"median of {len(sites)}", COLOURS[0])]
    current = {site: line[-1][1] for site, line in sites.items() if line[-1][0] == last}
    far = sorted(current, key=lambda site: -abs(current[site] - float(middle[-1])))[:OUTLIERS]
    for site, colour in zip(far, COLOURS[1:], strict=False):
        plot(axes, sites[site], colour, 1.2)
        ends.append((float(last), current[site], short(site), colour))
    return ends


def plot(
    axes: "Axes", line: Sequence[tuple[float, float]], colour: str, width: float, dashed: bool = False
) -> None:
    shown = thin(line, POINTS)
    marker = "o" if len(shown) <= 12 else ""
    axes.plot(*_xy(shown), color=colour, linewidth=width, marker=marker, markersize=2.2 * width,
              markeredgewidth=0, linestyle="--" if dashed else "-", clip_on=False)  # fmt: skip


def _xy(line: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [t for t, _ in line], [value for _, value in line]


def plain_log(axes: "Axes") -> None:
    """Give a logarithmic axis plain numbers, even if it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _handle(colour: str, text: str) -> "object":
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=2, marker="o", markersize=4, label=text)


def _evaluated(record: Record, site: str, score: str) -> Line:
    return [(m.round, m.evaluations[site][score]) for m in record.line if site in m.evaluations]


def _local(record: Record, site: str) -> Line:
    """The loss of the site's model before averaging: on held-out text if it was evaluated, else in training."""
    line: Line = []
    for manifest in record.trained:
        metrics = manifest.updates[site].metrics if site in manifest.updates else {}
        value = metrics.get("valid_loss", metrics.get("last_loss", metrics.get("train_loss")))
        if value is not None:
            line.append((manifest.round, value))
    return line


def _by_site(record: Record, prefix: str) -> dict[str, Line]:
    lines = {site: series(record.trained, prefix + site) for site in record.sites}
    return {site: line for site, line in lines.items() if line}


def last_values(what: str, lines: Mapping[str, Line]) -> str:
    """The newest values in words; for many sites, only the extremes."""
    ends = sorted(((line[-1][1], site) for site, line in lines.items() if line), reverse=True)
    if len(ends) > 8:
        (high, first), (low, last) = ends[0], ends[-1]
        text = f"{first} {high:.4g} is the highest of {len(ends)}, {last} {low:.4g} the lowest"
    else:
        text = ", ".join(f"{site} {value:.4g}" for value, site in ends)
    return f"{what}: {text}." if text else ""
