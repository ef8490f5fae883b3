"""The whole run's time by local steps a round, with the total of steps and the batch unchanged."""

from photon_core.plan.measured import Measured
from photon_core.plan.predict import Prediction, predict
from schemas.federation import Federation

TRIED = tuple(2**n for n in range(14))
SMALL = 0.05  # maximum share of the time for everything but training


def sweep(federation: Federation, measured: Measured | None = None) -> list[Prediction]:
    """Predictions for 1 to 8192 local steps, and for the file's number."""
    total = federation.total_rounds * federation.local.steps
    tried = sorted({steps for steps in TRIED if steps <= total} | {federation.local.steps})
    return [predict(federation, measured, steps) for steps in tried]


def best(predictions: list[Prediction]) -> Prediction | None:
    """The fewest local steps at which training takes 95 % of the time or more; None if times are unknown.

    More steps would save at most a twentieth of the time, while sites that train independently for longer drift
    apart. The wall-time model has no other reason against more steps. If no number reaches 95 %, the result is the
    fastest one.
    """
    known = [p for p in predictions if p.round_seconds is not None and p.local_seconds is not None]
    if not known:
        return None
    training = _training_alone(known)
    enough = (p for p in known if (p.run_seconds or 0.0) * (1 - SMALL) <= training)
    return next(enough, min(known, key=lambda p: p.run_seconds or 0.0))


def _training_alone(known: list[Prediction]) -> float:
    """Seconds of the run's training alone: the limit of the time as local steps increase.

    A round takes a + b H seconds, with b from the two largest H.
    """
    if len(known) < 2:
        return known[0].run_seconds or 0.0
    low, high = known[-2], known[-1]
    slope = ((high.round_seconds or 0.0) - (low.round_seconds or 0.0)) / (high.steps - low.steps)
    return slope * high.steps * high.rounds
