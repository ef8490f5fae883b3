"""The curves of benchmarks.convergence."""

from pathlib import Path
from typing import Any


def draw(rows: list[dict[str, Any]], recipes: tuple[str, ...], target: Path) -> None:
    """Draw the first seed's perplexity against tokens and bytes: one colour each, iid dashed, centralised in
    ink."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from photon_core.report.curves import plain_log
    from photon_core.report.style import COLOURS, INK, RC, SOFT

    colours = dict(zip(recipes, (INK, SOFT, *COLOURS), strict=False))
    with mpl.rc_context({**RC, "svg.hashsalt": "convergence"}):
        figure = Figure(figsize=(13, 5), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, index, label in ((panels[0], 0, "tokens trained (M)"), (panels[1], 1, "bytes moved (GB)")):
            for row in (row for row in rows if row["seed"] == 0):
                style = "--" if row["row"].endswith("/iid") else "-"
                x = [point[index] / (1e9 if index else 1e6) for point in row["curve"]]
                y = [point[2] for point in row["curve"]]
                colour = colours[row["row"].partition("/")[0]]
                axes.plot(x, y, style, color=colour, label=row["row"], marker=".")
            axes.set(yscale="log", xlabel=label)
            plain_log(axes)
        panels[1].set_xscale("log")
        panels[1].xaxis.set_major_formatter("{x:g}")
        panels[1].xaxis.set_minor_formatter("")
        panels[0].set_ylabel("perplexity, validation texts of all domains")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
        figure.savefig(target, format="svg", metadata={"Date": None})
