"""A site's contribution to a round: what its local training gives."""

from dataclasses import dataclass

from photon_core.update.contribution import Contribution


@dataclass(frozen=True, kw_only=True)
class Trained(Contribution):
    """A site's finished local training. Its files are in the site's private state of this round and attempt.

    Its metrics are those that the register (evidence/metrics.py) has of a training; of a site whose nodes trained
    independently, of all nodes together.

    Args:
        seconds: time of the process that finished, by phase: load, dataset, trainer, fit, encode, save, and
            checkpoint, which is part of fit.
    """

    seconds: dict[str, float]
