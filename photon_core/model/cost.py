"""The cost of training a model on a device: FLOPs a token, and bytes by purpose, from the shape, without torch.

The plan, the choice between DDP and FSDP, and the first guess of the micro-batch use it. It does not include what
an allocator adds (fragments, the CUDA context, the libraries' workspaces): leave a tenth of a device free.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from photon_core.model.shapes import is_hidden_matrix, parameter_count, parameter_shapes
from schemas.sections.model import Model

# TFLOP/s in dense bfloat16, by NVIDIA; the first that a device's name contains
PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0, "GB200": 2500.0, "B200": 2250.0}
OTHERS = ("PCIe", "NVL", "MIG")  # cards with lower clocks, and partitions of a GPU

Precision = Literal["fp32", "amp_bf16"]
FLOAT, BFLOAT, INDEX = 4, 2, 8  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        parameters, gradients: bytes of each, in float32 for every precision of the arithmetic.
        optimizer: bytes of the optimizer's state.
        copies: bytes of copies: under amp_bf16 the matrices in bfloat16; with shards the units that are gathered;
            with DDP the gradients in its buckets; with FedProx theta.
        activations: bytes that the forward pass keeps for the backward pass.
        transient: bytes of the largest short-lived buffers: the logits and their gradient, or those of one block.
    """

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.copies + self.activations + self.transient


def training_memory(
    model: Model,
    micro_batch: int,
    precision: Precision = "fp32",
    optimizer: str = "adamw",
    shards: int = 1,
    ddp: bool = False,
    proximal: bool = False,
) -> Memory:
    """Bytes of one device while it trains this model.

    Parameters, gradients and AdamW's two moments take 16 bytes a parameter (Rajbhandari et al. 2020, ZeRO, section
    3.1: 2 + 2 + 12 there, 4 + 4 + 8 under autocast); FSDP divides them by its shards. Muon keeps one momentum of
    the hidden matrices where AdamW has two moments.

    Activations follow Korthikanti et al. 2022 (Reducing Activation Recomputation, section 4.1): their
    s b h (34 + 5 a s / h) bytes a block in 16 bits, less 2 because there are no dropout masks, and less 5 a s / h
    because fused attention keeps one float32 a head and position in place of the scores. Autocast leaves the
    residual stream, which the two norms of a block keep, in float32.

    Args:
        model: shape of the model.
        micro_batch: sequences that go through the model at once.
        precision: precision of the arithmetic.
        optimizer: name of the optimizer: adamw or muon.
        shards: number of devices over which FSDP spreads parameters, gradients and optimizer state, or 1.
        ddp: flag: DDP.
        proximal: flag: FedProx keeps theta beside the model (never with FSDP).
    """
    shapes = parameter_shapes(model)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    hidden = sum(sizes[name] for name in sizes if is_hidden_matrix(name))
    moments = 2 * total - (hidden if optimizer == "muon" else 0)
    element = FLOAT if precision == "fp32" else BFLOAT
    matrices = hidden + sizes["wte.weight"]  # the head is the embedding
    if shards > 1:
        block = sum(size for name, size in sizes.items() if name.startswith("blocks.0."))
        root = total - model.n_layers * block
        copies = 2 * element * (root + 2 * block)  # the current and the prefetched block; parameters and gradients
    else:
        copies = (BFLOAT * matrices if precision == "amp_bf16" else 0) + FLOAT * total * (ddp + proximal)
    tokens = micro_batch * model.max_seq_len
    return Memory(
        parameters=-(-FLOAT * total // shards),
        gradients=-(-FLOAT * total // shards),
        optimizer=-(-FLOAT * moments // shards),
        copies=copies,
        activations=tokens * _activations(model, element),
        transient=tokens * max((element + 2 * FLOAT) * model.vocab_size, _block_gradients(model, element)),
    )


def _activations(model: Model, element: int) -> int:
    """Bytes a token that the forward pass keeps: of every block, the last norm, and the head without logits."""
    width, inner = model.d_model, model.d_model * model.expansion_ratio
    norms = 2 * (FLOAT * width + 2 * FLOAT)  # input, and each row's mean and deviation
    attention = element * (width + 3 * width + width) + FLOAT * model.n_heads  # input; q, k, v; output
    feed_forward = element * (width + inner + inner)  # input; before and after the GELU
    head = FLOAT * width + 2 * FLOAT + element * width
    return model.n_layers * (norms + attention + feed_forward) + head + 2 * INDEX  # tokens and targets


def _block_gradients(model: Model, element: int) -> int:
    """Bytes a token of the gradients that the backward pass of a block holds at once: around the GELU."""
    return element * 2 * model.d_model * model.expansion_ratio + FLOAT * model.d_model


def peak_tflops(device: str) -> float | None:
    """A GPU's peak in dense bfloat16, in 10^12 FLOP/s, by its name; None if unknown."""
    if any(other in device for other in OTHERS):
        return None
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def flops_per_token(model: Model) -> float:
    """Floating-point operations of training on one token: 6 N + 12 L d T.

    Chowdhery et al. 2022 (PaLM), appendix B: 6 for each parameter that takes part in a multiplication (forward and
    backward; the tied embedding counts once, as the head, and positions are only added), and 12 L H Q T for
    attention, without a discount for the causal mask.
    """
    multiplied = parameter_count(model) - model.max_seq_len * model.d_model
    return 6.0 * multiplied + 12.0 * model.n_layers * model.d_model * model.max_seq_len
