"""Loss and perplexity of a model on a site's held-out sequences. Child processes only."""

import math
from dataclasses import replace

import torch

from photon_core.aggregation.choice import MOST_SEQUENCES
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
    """Evaluate a model on the sequences that the site holds out. They are the same in every round.

    Args:
        view: site; data.evaluation_sequences of the file is the number of sequences.
        files: local paths of the model's verified safetensors files.
        threads: number of torch threads.

    Returns:
        loss (mean nats per predicted token; LARGEST_LOSS if it is not finite), perplexity (its exponential) and
        tokens (number of predicted tokens); for a site with several streams also loss/<stream> and
        tokens/<stream>.

    Raises:
        DataError: the site is not prepared, or holds out no sequences.
    """
    torch.set_num_threads(threads)
    size = evaluation_batch(view)
    device = choose_device(view.local)
    stage(view)  # a site that was not sampled has not validated its shards
    decoder = load_decoder(view.federation.model, Theta(files, view.federation.model).tensors(), device)
    return held_out_scores(decoder, view, device, size)


def evaluate_each(view: SiteView, models: list[list[str]], threads: int) -> list[dict[str, float]]:
    """As `evaluate`, for the files of several models, on at most MOST_SEQUENCES sequences."""
    data = view.federation.data
    few = data.model_copy(update={"evaluation_sequences": min(MOST_SEQUENCES, data.evaluation_sequences)})
    part = replace(view, federation=view.federation.model_copy(update={"data": few}))
    return [evaluate(part, files, threads) for files in models]


def held_out_scores(decoder: Decoder, view: SiteView, device: str, size: int) -> dict[str, float]:
    """The scores of a decoder that is on the device already, as from `evaluate`. Its mode is restored afterwards.

    Args:
        decoder: model to evaluate.
        view: site whose sequences are used.
        device: cpu or cuda.
        size: sequences per forward pass; they have to fit beside what is on the device already.
    """
    limit = view.federation.data.evaluation_sequences
    sequences = valid_sequences(view, limit)
    if not len(sequences):
        raise DataError(
            f"site '{view.name}' holds out no sequences; raise data.validation_share, then run "
            f"photon prepare --site {view.name}"
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
    loss_mean = _finite(total / len(sequences))
    scores = {
        "loss": loss_mean,
        "perplexity": perplexity(loss_mean),
        "tokens": float(len(sequences) * predicted),
    }
    counts, start = valid_counts(view, limit), 0
    for name, count in counts.items() if len(counts) > 1 else ():
        if count:
            scores[f"loss/{name}"] = _finite(sum(losses[start : start + count]) / count)
            scores[f"tokens/{name}"] = float(count * predicted)
        start += count
    return scores


def _finite(loss: float) -> float:
    """The loss; LARGEST_LOSS if the model has blown up: manifests hold finite numbers, and the guard needs one."""
    return loss if math.isfinite(loss) else LARGEST_LOSS
