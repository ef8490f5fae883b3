"""Loss and perplexity of a model on a site's held-out sequences. Child processes only."""

import math

import torch

from photon_core.data.held_out import valid_counts, valid_sequences
from photon_core.data.shards import stage
from photon_core.errors import DataError
from photon_core.evidence.metrics import LARGEST_LOSS, perplexity
from photon_core.hardware.device import choose_device
from photon_core.model.decoder import Decoder, load_decoder, losses_by_sample
from photon_core.training.exchange import Theta
from photon_core.training.micro_batch import evaluation_batch
from schemas.view import SiteView


def evaluate(view: SiteView, files: list[str], threads: int) -> dict[str, float]:
    """Evaluate a model on the sequences that the site holds out; the same ones every round.

    Args:
        view: the site; the file's data.evaluation_sequences is the number of sequences.
        files: local paths of the model's safetensors files, verified.
        threads: torch threads.

    Returns:
        loss (mean nats a predicted token; LARGEST_LOSS where it is not finite), perplexity (its exponential),
        tokens (predicted ones); of a site with several streams also loss/<stream> and tokens/<stream>.

    Raises:
        DataError: the site is not prepared, or holds no sequences out.
    """
    torch.set_num_threads(threads)
    size = evaluation_batch(view)
    device = choose_device(view.local)
    stage(view)  # a site that was not sampled has not validated its shards
    decoder = load_decoder(view.federation.model, Theta(files, view.federation.model).tensors(), device)
    return held_out_scores(decoder, view, device, size)


def held_out_scores(decoder: Decoder, view: SiteView, device: str, size: int) -> dict[str, float]:
    """As `evaluate`, of a decoder that is on the device already; it is left in the mode that it was in.

    Args:
        size: sequences that go through the model at once; no more than fit beside what is on the device.
    """
    limit = view.federation.data.evaluation_sequences
    sequences = valid_sequences(view, limit)
    if not len(sequences):
        raise DataError(
            f"site '{view.name}' holds no sequences out; raise data.validation_share and prepare again"
        )
    training, total, losses = decoder.training, 0.0, []
    decoder.eval()
    with torch.inference_mode():
        for start in range(0, len(sequences), size):
            tokens = torch.from_numpy(sequences[start : start + size]).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=view.local.precision == "amp_bf16"):
                loss, each = losses_by_sample(decoder(tokens), tokens)
            total += float(loss) * len(tokens)
            losses += each.tolist()
    decoder.train(training)
    predicted = sequences.shape[1] - 1
    loss_mean = _told(total / len(sequences))
    scores = {
        "loss": loss_mean,
        "perplexity": perplexity(loss_mean),
        "tokens": float(len(sequences) * predicted),
    }
    counts, start = valid_counts(view, limit), 0
    for name, count in counts.items() if len(counts) > 1 else ():
        if count:
            scores[f"loss/{name}"] = _told(sum(losses[start : start + count]) / count)
            scores[f"tokens/{name}"] = float(count * predicted)
        start += count
    return scores


def _told(loss: float) -> float:
    """A model that has blown up has no finite loss, but a manifest holds no other, and the guard has to see it."""
    return loss if math.isfinite(loss) else LARGEST_LOSS
