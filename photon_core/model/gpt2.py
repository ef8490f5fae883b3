"""Photon's model in GPT-2's terms, and back: names, transpositions, config.json.

Hugging Face's GPT-2 computes what photon_core/model/decoder.py does (learned positions, pre-norm blocks, biases,
tied embeddings), but keeps the blocks' matrices as (in, out), where torch.nn.Linear and Photon have (out, in).
Its `activation_function` is "gelu", the exact one, for Photon's models; GPT-2 itself was trained with "gelu_new".
"""

from dataclasses import dataclass
from typing import Any

from photon_core.model.shapes import parameter_shapes
from schemas.sections.model import Model

BLOCK = {
    "norm_1": "ln_1",
    "attn.Wqkv": "attn.c_attn",
    "attn.out_proj": "attn.c_proj",
    "norm_2": "ln_2",
    "ffn.up_proj": "mlp.c_fc",
    "ffn.down_proj": "mlp.c_proj",
}
PREFIX = "transformer."
EPSILON = 1e-5  # of the decoder's layer norms: torch's default


@dataclass(frozen=True)
class Place:
    """The place of one of Photon's tensors in a GPT-2 checkpoint.

    Args:
        name: name in GPT-2.
        shape: shape in GPT-2.
        transposed: flag: GPT-2 has the transpose of Photon's matrix.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool


def gpt2_places(model: Model) -> dict[str, Place]:
    """Photon's name -> its place in a GPT-2 checkpoint, for every parameter of the model."""
    places = {}
    for name, shape in parameter_shapes(model).items():
        part, _, kind = name.rpartition(".")
        if not part.startswith("blocks."):
            places[name] = Place(f"{PREFIX}{'ln_f' if part == 'norm_f' else part}.{kind}", shape, False)
            continue
        _, layer, inner = part.split(".", 2)
        transposed = len(shape) == 2
        place = f"{PREFIX}h.{layer}.{BLOCK[inner]}.{kind}"
        places[name] = Place(place, shape[::-1] if transposed else shape, transposed)
    return places


def gpt2_config(model: Model, end_of_text: int) -> dict[str, Any]:
    """The model's config.json for the transformers library."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu",
        "n_layer": model.n_layers,
        "n_embd": model.d_model,
        "n_head": model.n_heads,
        "n_inner": model.d_model * model.expansion_ratio,
        "n_positions": model.max_seq_len,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": EPSILON,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }
