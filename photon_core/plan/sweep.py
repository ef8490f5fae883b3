"""The whole run's time against local steps a round, all steps and the batch unchanged."""

from photon_core.plan.measured import Measured
from photon_core.plan.predict import Prediction, predict
from schemas.federation import Federation

TRIED = tuple(2**n for n in range(14))
SMALL = 0.05  # share of the time that what is not training may take


def sweep(federation: Federation, measured: Measured | None = None) -> list[Prediction]:
    """Predictions for 1 to 8192 local steps, the file's own among them."""
    total = federation.total_rounds * federation.local.steps
    tried = sorted({steps for steps in TRIED if steps <= total} | {federation.local.steps})
    return [predict(federation, measured, steps) for steps in tried]


def best(predictions: list[Prediction]) -> Prediction | None:
    """The fewest local steps of which training takes 95 % of the time or more; None where times are not known.

    More steps would save at most a twentieth of the time, while sites that train apart for longer drift apart:
    the wall-time model knows of no other reason against more of them. Where none reaches it, the most that were
    tried.
    """
    known = [p for p in predictions if p.round_seconds is not None and p.local_seconds is not None]
    if not known:
        return None
    training = _training_alone(known)
    enough = (p for p in known if (p.run_seconds or 0.0) * (1 - SMALL) <= training)
    return next(enough, min(known, key=lambda p: p.run_seconds or 0.0))


def _training_alone(known: list[Prediction]) -> float:
    """Seconds of the run's training alone: what the time tends to with ever more local steps.

    A round takes a + b H seconds; b from the two largest H.
    """
    if len(known) < 2:
        return known[0].run_seconds or 0.0
    low, high = known[-2], known[-1]
    slope = ((high.round_seconds or 0.0) - (low.round_seconds or 0.0)) / (high.steps - low.steps)
    return slope * high.steps * high.rounds
