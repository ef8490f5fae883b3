"""The rows of benchmarks.convergence: recipes, and centralised training at its batch sizes and rates."""

from typing import Any

BEST = "unlike-sites"
RATES = {"photon": 8e-3, "fedmom": 4e-3, "diloco": 4e-3, "local-sgd": 8e-3, BEST: 1.6e-2}
CENTRAL: dict[str, dict[str, Any]] = {  # for the sum of the sites' batches, at a factor of 1
    "central-adamw": {"name": "adamw", "lr": 8e-3},
    "central-muon": {"name": "muon", "lr": 1.6e-2, "matrix_lr": 0.02},
}
BATCHES = (0.25, 0.5, 1.0, 2.0)  # batch sizes, as multiples of the sum of the sites' batches
FACTORS = (0.5, 1.0, 2.0)  # factors of the rates, in addition to the square root of the batch
CHOSEN = {"central-adamw": (1.0, 1.0), "central-muon": (1.0, 1.0)}  # batch and factor
ROWS = (*CENTRAL, *(f"{recipe}/{kind}" for kind in ("natural", "iid") for recipe in RATES))
QUICK = ("central-muon", f"{BEST}/natural", f"{BEST}/iid")


def grid(name: str) -> list[str]:
    """Names of a centralised row's settings: name:batch:factor."""
    return [f"{name}:{batch:g}:{factor:g}" for batch in BATCHES for factor in FACTORS]


def central_setting(row: str) -> tuple[str, float, float]:
    """(name, batch, factor) of a centralised row; the chosen ones if the row names none."""
    name, *numbers = row.split(":")
    batch, factor = map(float, numbers) if numbers else CHOSEN[name]
    return name, batch, factor
