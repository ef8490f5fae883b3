"""A site's metrics of one round, for the manifest of its update."""

from photon_core.hardware.parallelism import choose_infra
from photon_core.model.cost import flops_per_token
from photon_core.training.callback import Progress
from photon_core.training.job import LocalJob

STREAMS_LIMIT = 200  # maximum number of streams in one manifest: those with the most samples


def round_metrics(job: LocalJob, progress: Progress) -> dict[str, float]:
    """Losses, norms and speed of a round's local steps; mfu only if the site declares the peak of its hardware."""
    metrics = {
        "train_loss": progress.loss_sum / progress.tokens,
        "last_loss": progress.last_loss,
        "samples": float(progress.count),
        "gradient_norm": progress.gradient_norms / progress.steps,
        "activation_norm": progress.activation_norms / progress.steps,
    }
    if progress.first_loss is not None:
        metrics["first_loss"] = progress.first_loss
    most = sorted(progress.streams.items(), key=lambda entry: -entry[1][1])[:STREAMS_LIMIT]
    for name, (loss, samples) in sorted(most):
        metrics |= {f"loss/{name}": loss / samples, f"samples/{name}": samples}
    hardware = job.view.hardware
    if hardware is not None and progress.seconds:
        done = flops_per_token(job.view.federation.model) * progress.tokens / progress.seconds
        metrics["mfu"] = done / (hardware.tflops * 1e12 * choose_infra(job.view).ranks)
    return metrics
