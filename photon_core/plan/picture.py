"""The plan's picture: the run's time by local steps a round, beside data-parallel training."""

from pathlib import Path

from photon_core.hardware.exchange import TOPOLOGIES
from photon_core.plan.predict import Prediction


def draw(predictions: list[Prediction], now: Prediction, advised: Prediction | None, path: Path) -> None:
    """Write an SVG that marks the file's number of steps and the best one.

    Args:
        predictions: predictions of one run with different numbers of local steps, all with known times.
        now: prediction with the file's number.
        advised: prediction with the best number; None if unknown.
        path: output file.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    steps = [p.steps for p in predictions]
    hours = [(p.run_seconds or 0.0) / 3600 for p in predictions]
    axes.plot(steps, hours, marker="o", color="#1f5fa8", label="as the file says")
    for topology, style in zip(TOPOLOGIES, (":", "--", "-."), strict=True):
        seconds = [p.topology_seconds(topology) for p in predictions]
        if None not in seconds:
            axes.plot(steps, [(s or 0.0) / 3600 for s in seconds], style, color="#777777", label=topology)
    parallel = now.data_parallel_seconds
    if parallel is not None:
        axes.axhline(parallel / 3600, color="#b8442f", label="data-parallel, same links")
    marks = [(now, "the file's", 12)] + (
        [(advised, "best", -18)] if advised and advised.steps != now.steps else []
    )
    for prediction, word, offset in marks:
        at = (prediction.steps, (prediction.run_seconds or 0.0) / 3600)
        axes.annotate(
            f"{word} {prediction.steps}", at, xytext=(0, offset), textcoords="offset points", ha="center"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(steps, [str(s) for s in steps], rotation=45)
    axes.set_xlabel("local steps a round (all steps unchanged)")
    axes.set_ylabel("hours for the whole run")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path, format="svg", metadata={"Date": None, "Title": "photon plan"})
