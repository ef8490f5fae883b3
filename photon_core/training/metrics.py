"""A site's metrics of one round, as its update's manifest carries them."""

from photon_core.training.job import LocalJob
from photon_core.training.round_callback import Progress
from photon_core.training.shapes import parameter_count
from schemas.model import Model

STREAMS_LIMIT = 200  # named in one manifest; of more, those with the most samples


def round_metrics(job: LocalJob, progress: Progress) -> dict[str, float]:
    """Losses, norms and speed of a round's local steps; mfu only where the site declares its hardware's peak."""
    metrics = {
        "train_loss": progress.loss_sum / progress.tokens,
        "last_loss": progress.last_loss,
        "samples": float(progress.count),
        "gradient_norm": progress.gradient_norms / progress.steps,
        "activation_norm": progress.activation_norms / progress.steps,
    }
    most = sorted(progress.streams.items(), key=lambda entry: -entry[1][1])[:STREAMS_LIMIT]
    for name, (loss, samples) in sorted(most):
        metrics |= {f"loss/{name}": loss / samples, f"samples/{name}": samples}
    hardware = job.federation.site(job.site).hardware
    if hardware is not None and progress.seconds:
        done = flops_per_token(job.federation.model) * progress.tokens / progress.seconds
        metrics["mfu"] = done / (hardware.tflops * 1e12 * hardware.devices)
    return metrics


def flops_per_token(model: Model) -> float:
    """Floating-point operations of training on one token: 6 N + 12 L d T.

    Chowdhery et al. 2022 (PaLM), appendix B: 6 a parameter that is multiplied with (forward and backward; the
    tied embedding counts once, as the head, and positions are only added), and 12 L H Q T for attention, whose
    causal half is not taken off.
    """
    multiplied = parameter_count(model) - model.max_seq_len * model.d_model
    return 6.0 * multiplied + 12.0 * model.n_layers * model.d_model * model.max_seq_len
