"""`worldlm.temperature: auto`: a node tries several means of its pool, and takes the one with the lowest loss.

    own         its own row alone
    0.3, 1, 3   attention at this temperature
    mean        the mean of all rows
    parent      its parent's row alone, in a pool that has one

The loss is of the node's model on held-out text: a site's on its own, a federation's on that of its members, as a
mean weighted by tokens. One option holds for all key layers of the node. Equal losses go to the first option.
Where nothing is compared, the temperature is 1. All of this is a choice of this project.
"""

import math
from collections.abc import Mapping
from typing import Any

from schemas.manifests import Attention
from schemas.sections.worldlm import AUTO, WorldLM

MOST_SEQUENCES = 32  # of a site's held-out text, for each option
PARENT = "parent"
OPTIONS: dict[str, dict[str, Any]] = {  # settings of each
    "own": {"temperature": 0.0},
    **{f"{temperature:g}": {"temperature": temperature} for temperature in (0.3, 1.0, 3.0)},
    "mean": {"attention": "mean", "temperature": 1.0},
    PARENT: {"temperature": 0.0},
}
UNCHOSEN = "1"


def settled(worldlm: WorldLM, option: str) -> WorldLM:
    """The settings with those of an option, if the temperature is auto; else unchanged."""
    return worldlm.model_copy(update=OPTIONS[option]) if worldlm.temperature == AUTO else worldlm


def choose(losses: Mapping[str, float]) -> str:
    """The option with the lowest loss."""
    return min((option for option in OPTIONS if option in losses), key=losses.__getitem__)


def mean_losses(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The losses to choose by: means weighted by tokens, over the members that have evaluated every option.

    Args:
        scores: option -> member -> loss and tokens of the model.

    Returns:
        option -> loss; empty if there is no such member.
    """
    members = sorted(set.intersection(*(set(each) for each in scores.values())))
    if not any(each[name]["tokens"] for each in scores.values() for name in members):
        return {}
    return {
        option: math.fsum(each[name]["loss"] * each[name]["tokens"] for name in members)
        / math.fsum(each[name]["tokens"] for name in members)
        for option, each in scores.items()
    }


def chosen_in(attention: Mapping[str, Attention]) -> str:
    """The option that was chosen; empty if none was."""
    return next((one.chosen for one in attention.values() if one.chosen in OPTIONS), "")


def with_choice(attention: Mapping[str, Attention], losses: Mapping[str, float]) -> dict[str, Attention]:
    """The attention of the chosen option, with all options' losses."""
    update = {"losses": dict(losses), "chosen": choose(losses)}
    return {layer: one.model_copy(update=update) for layer, one in attention.items()}
