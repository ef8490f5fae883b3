"""The model's parameters by name and shape, without torch, for the start, the plan and the checks."""

from collections.abc import Collection

from schemas.sections.model import Model


def parameter_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, in the order of the forward pass.

    Names are those of llm-foundry's MPT below `transformer`. The output head is the token embedding (tied) and
    is therefore not listed. Matrices are (out, in), as torch.nn.Linear keeps them.
    """
    width, inner = model.d_model, model.d_model * model.expansion_ratio
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (model.vocab_size, width),
        "wpe.weight": (model.max_seq_len, width),
    }
    block: dict[str, tuple[int, ...]] = {
        "norm_1.weight": (width,),
        "norm_1.bias": (width,),
        "attn.Wqkv.weight": (3 * width, width),
        "attn.Wqkv.bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "norm_2.weight": (width,),
        "norm_2.bias": (width,),
        "ffn.up_proj.weight": (inner, width),
        "ffn.up_proj.bias": (inner,),
        "ffn.down_proj.weight": (width, inner),
        "ffn.down_proj.bias": (width,),
    }
    for layer in range(model.n_layers):
        shapes.update({f"blocks.{layer}.{name}": shape for name, shape in block.items()})
    shapes["norm_f.weight"] = shapes["norm_f.bias"] = (width,)
    return shapes


def parameter_count(model: Model) -> int:
    """Number of trained scalars."""
    total = 0
    for shape in parameter_shapes(model).values():
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def is_hidden_matrix(name: str) -> bool:
    """Whether the parameter is a matrix between two hidden layers, not an embedding, bias or norm."""
    return name.startswith("blocks.") and name.endswith(("Wqkv.weight", "_proj.weight"))


def moment_shapes(model: Model, optimizer: str, apart: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the inner optimizer's moments, its state between two steps except the step count.

    Names are <moment>.<parameter>. The moments are exp_avg and exp_avg_sq with adamw. With muon, hidden matrices
    have momentum instead, and adamw updates the others.

    Args:
        model, optimizer: sections of the federation file.
        apart: parameters that are excluded.
    """
    shapes = {}
    for name, shape in parameter_shapes(model).items():
        if name in apart:
            continue
        muon = optimizer == "muon" and is_hidden_matrix(name)
        for moment in ("momentum",) if muon else ("exp_avg", "exp_avg_sq"):
            shapes[f"{moment}.{name}"] = shape
    return shapes
