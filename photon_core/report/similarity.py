"""The figure of agreement: cosines between the updates of every two sites."""

from typing import TYPE_CHECKING

from photon_core.evidence.record import Record
from photon_core.report.style import INK, Picture, draw, short
from schemas.manifests import RoundManifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFIX = "cosine_pair/"  # cosine_pair/<site>/<site> in a round's metrics, the names in order
MEAN = "mean"


def pairs(manifest: RoundManifest) -> tuple[list[str], dict[tuple[str, str], float]]:
    """The sites of a round, and the cosines between pairs of them that its manifest has."""
    names = sorted(manifest.updates)
    cosines: dict[tuple[str, str], float] = {}
    for i, one in enumerate(names):
        cosines[one, one] = 1.0
        for other in names[i + 1 :]:
            value = manifest.metrics.get(f"{PREFIX}{one}/{other}")
            if value is not None:
                cosines[one, other] = cosines[other, one] = value
    return names, cosines


def matrix(record: Record) -> Picture | None:
    """The last round's matrix: a square for each pair of sites, blue if they agree, red if they disagree."""
    manifest = next((m for m in reversed(record.trained) if any(k.startswith(PREFIX) for k in m.metrics)), None)
    if manifest is None:
        return None
    names, cosines = pairs(manifest)
    with_mean = {
        site: manifest.metrics[f"cosine/{site}"] for site in names if f"cosine/{site}" in manifest.metrics
    }
    different = {pair: value for pair, value in cosines.items() if pair[0] < pair[1]}
    least = min(different, key=different.__getitem__)
    most = max(different, key=different.__getitem__)
    alt = (
        f"Cosines between the updates of every two of {len(names)} sites in round {manifest.round}: "
        f"{least[0]} and {least[1]} agree least ({different[least]:.2f}), {most[0]} and {most[1]} most "
        f"({different[most]:.2f})."
    )
    columns = [*names, MEAN]

    def paint(figure: "Figure") -> None:
        import numpy as np

        axes = figure.subplots()
        values = np.full((len(names), len(columns)), np.nan)
        for y, one in enumerate(names):
            for x, other in enumerate(names):
                if one != other:
                    values[y, x] = cosines.get((one, other), np.nan)
            values[y, -1] = with_mean.get(one, np.nan)
        edges = np.arange(len(columns) + 1)
        axes.pcolormesh(edges, np.arange(len(names) + 1), values, cmap="RdBu", vmin=-1, vmax=1, edgecolors="white",
                        linewidth=1.5)  # fmt: skip
        size = 11.0 if len(names) <= 6 else 8.5 if len(names) <= 10 else 6.5
        for y in range(len(names)):
            for x in range(len(columns)):
                value = values[y, x]
                if np.isfinite(value):
                    colour = "white" if abs(value) > 0.6 else INK
                    axes.text(
                        x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=size
                    )
        axes.axvline(len(names), color="white", linewidth=6)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(names)) + 0.5, [short(name) for name in names])
        turn = 0 if len(names) * max(map(len, names)) <= 36 else 45
        axes.set_xticks(
            np.arange(len(columns)) + 0.5, [short(name, 13) for name in columns], rotation=turn,
            ha="center" if not turn else "left", fontsize=10,
        )  # fmt: skip
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)

    return draw(
        "matrix", f"Agreement of the sites, round {manifest.round}", alt, 70 + min(44 * len(names), 400), paint
    )
