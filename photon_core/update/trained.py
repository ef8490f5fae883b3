"""A site's contribution to a round: the result of its local training."""

from dataclasses import dataclass

from photon_core.update.contribution import Contribution


@dataclass(frozen=True, kw_only=True)
class Trained(Contribution):
    """A site's finished local training. Its files are in the site's private state of this round and attempt.

    Its metrics are those of a training in the register (evidence/metrics.py). If the site's nodes trained
    independently, they are of all nodes together.

    Args:
        seconds: seconds by phase, of the process that finished: load, dataset, trainer, fit, encode, save, and
            checkpoint, which is part of fit.
    """

    seconds: dict[str, float]
