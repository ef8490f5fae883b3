"""Loss and perplexity of a model on a site's held-out sequences. Child processes only."""

import math

import torch

from photon_core.data.shards import stage
from photon_core.data.stream import valid_sequences
from photon_core.errors import DataError
from photon_core.training.device import choose_device
from photon_core.training.model import load_decoder, next_token_loss
from photon_core.training.weights import Theta
from schemas.federation import Federation

LARGEST_LOSS = 700.0  # exp of more is not a float


def evaluate(federation: Federation, site: str, files: list[str], threads: int) -> dict[str, float]:
    """Evaluate a model on the sequences that the site holds out; the same ones every round.

    Args:
        federation: its data.evaluation_sequences is the number of sequences.
        site: name of the site.
        files: local paths of the model's safetensors files, verified.
        threads: torch threads.

    Returns:
        loss (mean nats a predicted token), perplexity (its exponential), tokens (predicted ones).
    """
    torch.set_num_threads(threads)
    device = choose_device(federation.local)
    stage(federation, site)  # a site that was not sampled has not validated its shards
    sequences = valid_sequences(federation, site, federation.data.evaluation_sequences)
    if not len(sequences):
        raise DataError(f"site '{site}' holds no sequences out; raise data.validation_share and prepare again")
    decoder = load_decoder(federation.model, Theta(files, federation.model).tensors(), device).eval()
    total = 0.0
    size = federation.local.batch_size
    with torch.inference_mode():
        for start in range(0, len(sequences), size):
            tokens = torch.from_numpy(sequences[start : start + size]).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=federation.local.precision == "amp_bf16"):
                loss = next_token_loss(decoder(tokens), tokens)
            total += float(loss) * len(tokens)
    loss_mean = total / len(sequences)
    return {
        "loss": loss_mean,
        "perplexity": math.exp(min(loss_mean, LARGEST_LOSS)),
        "tokens": float(len(sequences) * (sequences.shape[1] - 1)),
    }
