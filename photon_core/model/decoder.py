"""The decoder-only transformer, as in llm-foundry's MPT, and its wrapping for Composer.

Learned positions, pre-norm blocks, GELU, biases everywhere, token embedding tied to the output head.
Imports torch: only child processes import this module.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from composer.models import ComposerModel
from torch import Tensor, nn
from typing_extensions import override

from photon_core.model.init import initial_tensor
from photon_core.model.meters import ActivationNorm
from photon_core.model.shapes import parameter_shapes
from schemas.sections.model import Model

IGNORED = -100  # target of the last position, which has no next token


class Attention(nn.Module):
    """Causal self-attention, (B, T, d) -> (B, T, d), through torch's fused kernels."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.n_heads = model.n_heads
        self.Wqkv = nn.Linear(model.d_model, 3 * model.d_model)
        self.out_proj = nn.Linear(model.d_model, model.d_model)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.Wqkv(x).view(batch, length, 3, self.n_heads, width // self.n_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two layers with a GELU between them, (B, T, d) -> (B, T, d)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.up_proj = nn.Linear(model.d_model, model.d_model * model.expansion_ratio)
        self.down_proj = nn.Linear(model.d_model * model.expansion_ratio, model.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(model.d_model)
        self.attn = Attention(model)
        self.norm_2 = nn.LayerNorm(model.d_model)
        self.ffn = FeedForward(model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.ffn(self.norm_2(x))


class Decoder(nn.Module):
    """Token ids (B, T) -> logits (B, T, vocabulary), T at most max_seq_len."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.wte = nn.Embedding(model.vocab_size, model.d_model)
        self.wpe = nn.Embedding(model.max_seq_len, model.d_model)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.n_layers))
        self.norm_f = nn.LayerNorm(model.d_model)

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        """Whether FSDP gathers the module as one unit. Composer calls it."""
        return isinstance(module, Block)

    def forward(self, tokens: Tensor, norms: bool = False) -> Any:
        """The logits; with `norms` also the Euclidean norms of the last block's outputs, summed over tokens."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm_f(x), self.wte.weight)
        return (logits, x.detach().float().norm(dim=-1).sum()) if norms else logits


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of predicting each token except the first from those before it.

    Args:
        logits: scores (B, T, vocabulary).
        tokens: token ids (B, T), int64.
    """
    targets = F.pad(tokens[:, 1:], (0, 1), value=IGNORED)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def losses_by_sample(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """`next_token_loss`, bit for bit, and the mean loss of every sample, (B,), without a gradient."""
    targets = F.pad(tokens[:, 1:], (0, 1), value=IGNORED)
    scores = F.log_softmax(logits.flatten(0, 1), -1)  # cross_entropy in two steps
    loss = F.nll_loss(scores, targets.flatten(), ignore_index=IGNORED)
    each = F.nll_loss(scores.detach(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return loss, each.view(tokens.shape).sum(1) / (tokens.shape[1] - 1)


def score(
    decoder: Decoder, tokens: Tensor, norms: bool, by_sample: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A training step's forward pass, including the loss. This is what torch.compile compiles.

    Returns:
        The loss; the sum of activation norms, if `norms`; every sample's loss, (B,), if `by_sample`.
    """
    logits, norm = decoder(tokens, True) if norms else (decoder(tokens), None)
    if not by_sample:
        return next_token_loss(logits, tokens), norm, None
    loss, losses = losses_by_sample(logits, tokens)
    return loss, norm, losses


class PhotonModel(ComposerModel):
    """The decoder with Composer's interface; a batch is {"tokens": int64 (B, T), "id": int64 (B,)}.

    A batch with the key "empty" only keeps this rank in step with the others: nothing of it is measured.

    Args:
        decoder: decoder to train.
        by_sample: flag: keep each sample's loss until `take_losses`.
        activations: meter of the activations' norms.
        score: forward pass, such as a compiled one.
    """

    def __init__(
        self,
        decoder: Decoder,
        by_sample: bool = False,
        activations: ActivationNorm | None = None,
        score: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] = score,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self._losses: list[Tensor] | None = [] if by_sample else None
        self._activations = activations
        self._score = score

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The batch's loss."""
        tokens, measured = batch["tokens"], (self._activations is not None, self._losses is not None)
        loss, norms, losses = self._score(self.decoder, tokens, *measured)
        if not batch.get("empty"):
            if self._activations is not None and norms is not None:
                self._activations.add(norms, tokens.numel())
            if self._losses is not None and losses is not None:
                self._losses.append(losses)
        return loss

    @override
    def loss(self, outputs: Tensor, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return outputs

    def take_losses(self) -> list[float]:
        """Mean loss of every sample since the last call, in the order of the batches."""
        taken = torch.cat(self._losses).tolist() if self._losses else []
        self._losses = []
        return taken

    @override
    def eval_forward(self, batch: dict[str, Tensor], outputs: Tensor | None = None) -> Tensor:
        return self.forward(batch) if outputs is None else outputs


def empty_decoder(model: Model, device: str = "cpu") -> Decoder:
    """A decoder with uninitialised parameters, so that no numbers are drawn only to be overwritten."""
    with torch.device("meta"):
        decoder = Decoder(model)
    return decoder if device == "meta" else decoder.to_empty(device=device)


def load_decoder(model: Model, tensors: dict[str, Tensor], device: str = "cpu") -> Decoder:
    """A decoder with a copy of these parameters.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    decoder = empty_decoder(model, device)
    decoder.load_state_dict(tensors, strict=True)
    return decoder


def initial_decoder(model: Model, seed: int) -> Decoder:
    """The decoder with the initial model theta^0."""
    tensors = {name: torch.from_numpy(initial_tensor(name, model, seed)) for name in parameter_shapes(model)}
    return load_decoder(model, tensors)
