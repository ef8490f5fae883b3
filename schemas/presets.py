"""The published settings: shapes of the Photon papers, the tech report's federated settings, and named recipes.

Source: "The Future of Large Language Model Pre-training is Federated" (arXiv 2405.10853), tables of the
model and federated hyperparameters; "Photon: Federated LLM Pre-Training" (arXiv 2411.02908) and its released
script for the 125M model; "DiLoCo" (arXiv 2311.08105).

A preset sets the size: shape, rounds, batch, learning rate, horizon. A recipe sets the method at the site and at
the server. A recipe's values override the preset's, and the file's values override both. A file's recipe depends
only on `recipe`, `preset` and `model.preset` (`default_recipe`): no other key adds or removes one.
"""

from collections.abc import Callable, Sequence
from typing import Any


def _shape(n_layers: int, d_model: int, n_heads: int, max_seq_len: int) -> dict[str, int]:
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "expansion_ratio": 4,
        "vocab_size": 50_368,
        "max_seq_len": max_seq_len,
    }


MODEL_PRESETS: dict[str, dict[str, int]] = {
    "75M": _shape(3, 896, 16, 1024),
    "125M": _shape(12, 768, 12, 2048),
    "350M": _shape(24, 1024, 16, 2048),
    "1.3B": _shape(24, 2048, 16, 2048),
    "3B": _shape(32, 2560, 20, 2048),
    "7B": _shape(32, 4096, 32, 2048),
}


def _federated(name: str, rounds: int, alpha: float, lr: float, total_steps: int, batch: int) -> dict[str, Any]:
    return {
        "model": {"preset": name},
        "rounds": {"count": rounds},
        "local": {
            "batch_size": batch,
            "optimizer": {"name": "adamw", "lr": lr, "betas": [0.9, 0.95]},
            "schedule": {"name": "cosine", "alpha": alpha, "total_steps": total_steps},
        },
        "server": {"optimizer": "fedmom", "lr": 0.2, "momentum": 0.9},
    }


FEDERATED_PRESETS: dict[str, dict[str, Any]] = {
    "75M": _federated("75M", 40, 1e-6, 4e-4, 88_000, 256),
    "125M": _federated("125M", 25, 1e-5, 3e-4, 15_000, 256),
    "350M": _federated("350M", 40, 1e-1, 3e-4, 13_400, 256),
    "1.3B": _federated("1.3B", 16, 1e-1, 2e-4, 24_800, 512),
}


PHOTON_STEPS = 128
PHOTON_SITES = 8  # sites that share the central batch


def _photon(size: dict[str, Any]) -> dict[str, Any]:
    """The later paper's recipe: a small batch per site with the large batch's learning rate, a schedule stretched
    by central batch / local batch (`_stretch`), plain averaging. Without a size: the released script for 125M."""
    local: dict[str, Any] = {
        "steps": PHOTON_STEPS,
        "batch_size": 32,
        "optimizer": {"name": "adamw", "lr": 6e-4, "betas": [0.9, 0.95]},
        "schedule": {"name": "cosine", "alpha": 0.1, "warmup_steps": 800},
        "optimizer_state": "keep",
        "clip_norm": 1.0,
    }
    if size:
        local["batch_size"] = size["local"]["batch_size"] // PHOTON_SITES
        local["optimizer"] = size["local"]["optimizer"]
        local["schedule"] = {**size["local"]["schedule"], "warmup_steps": 800}
    return {"rounds": {"count": 320}, "local": local, "server": {"optimizer": "fedavg", "lr": 1.0}}


def _stretch(size: dict[str, Any], how: dict[str, Any], batch: Any, steps: Any) -> None:
    """Set the Photon recipe's steps and rounds for a size: the size's tokens, in the file's batches and steps."""
    if all(isinstance(number, int) and number > 0 for number in (batch, steps)):
        total = -(-size["local"]["schedule"]["total_steps"] * size["local"]["batch_size"] // batch)
        how["local"]["schedule"]["total_steps"] = total
        how["rounds"]["count"] = -(-total // steps)


def _fedmom(_size: dict[str, Any]) -> dict[str, Any]:
    """The tech report's tables: values common to all sizes."""
    return {
        "local": {"optimizer": {"name": "adamw", "betas": [0.9, 0.95]}, "schedule": {"name": "cosine"}},
        "server": {"optimizer": "fedmom", "lr": 0.2, "momentum": 0.9},
    }


def _diloco(_size: dict[str, Any]) -> dict[str, Any]:
    """DiLoCo: AdamW inside, Nesterov outside, 500 local steps."""
    return {
        "local": {"steps": 500, "optimizer": {"name": "adamw"}, "optimizer_state": "keep"},
        "server": {"optimizer": "nesterov", "lr": 0.7, "momentum": 0.9},
    }


def _local_sgd(_size: dict[str, Any]) -> dict[str, Any]:
    """Local SGD's outer loop (Stich 2018): parameters are averaged, and nothing else is kept."""
    return {
        "local": {"optimizer_state": "reset"},
        "server": {"optimizer": "fedavg", "lr": 1.0},
    }


OURS = "unlike-sites"
PUBLISHED = "fedmom"  # the recipe with settings for every size of FEDERATED_PRESETS
UNLIKE_STEPS = 20
WARMUP = 30
NAMED = "photon, fedmom, diloco, local-sgd, unlike-sites"  # for messages


def _unlike_sites(size: dict[str, Any]) -> dict[str, Any]:
    """Photon's default recipe, for sites whose texts differ: inner Muon with moments averaged every round, few
    steps a round, and outer Nesterov momentum. Numbers come from probes at 1 M parameters (benchmarks/NOTES.md).
    With a preset, the preset's AdamW rate, batch and schedule apply, which has not been measured."""
    local: dict[str, Any] = {
        "steps": UNLIKE_STEPS,
        "optimizer": {"name": "muon", "lr": 1.6e-2, "matrix_lr": 0.02, "momentum": 0.95, "betas": [0.9, 0.95]},
        "schedule": {"name": "cosine", "alpha": 0.1, "warmup_steps": None},
        "optimizer_state": "average",
        "clip_norm": 1.0,
    }
    recipe = {"local": local, "server": {"optimizer": "nesterov", "lr": 0.7, "momentum": 0.6}}
    if size:
        local["optimizer"]["lr"] = size["local"]["optimizer"]["lr"]
        local["schedule"] = {**size["local"]["schedule"], "warmup_steps": None}
        recipe["rounds"] = {"count": -(-local["schedule"]["total_steps"] // UNLIKE_STEPS)}
    return recipe


RECIPES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "photon": _photon,
    "fedmom": _fedmom,
    "diloco": _diloco,
    "local-sgd": _local_sgd,
    OURS: _unlike_sites,
}


# keys with an optimizer's name; the keys beside a name belong to that optimizer
NAMES = (("local", "optimizer", "name"), ("server", "optimizer"))


def apply_preset(data: dict[str, Any], between: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Federation data with the values of its preset and recipe below the user's. Mappings are merged.

    Numbers belong to their optimizer, at the sites and at the server: a file that names another gets none of them.

    Args:
        data: mapping of the file, as written.
        between: values over the preset's and the recipe's, below the user's.
    """
    name = data.get("preset")
    if "recipe" not in data and name is None:
        default = default_recipe(_at(data, ("model", "preset")))
        data = {**data, **({"recipe": default} if default else {})}
        name = _at(data, ("model", "preset")) if default == PUBLISHED else None
    recipe = data.get("recipe")
    size = FEDERATED_PRESETS.get(name, {}) if isinstance(name, str) else {}
    if not isinstance(recipe, str) or recipe not in RECIPES:
        return _merged([size, *between, data])
    how = RECIPES[recipe](size)
    if recipe == "photon" and size:
        whole = _merged([size, how, data])
        _stretch(size, how, *(_at(whole, ("local", key)) for key in ("batch_size", "steps")))
    return _merged([size, how, *between, data])


def default_recipe(shape: Any) -> str | None:
    """The recipe of a file that names neither a recipe nor a preset.

    Args:
        shape: value of `model.preset`.

    Returns:
        OURS for the file's own shape; PUBLISHED, with the size's settings, for a published shape, because OURS was
        never measured there; None if no settings are published for that shape.
    """
    if not isinstance(shape, str) or shape not in MODEL_PRESETS:
        return OURS
    return PUBLISHED if shape in FEDERATED_PRESETS else None


def needs_recipe(data: dict[str, Any]) -> str | None:
    """The published shape of a file that must name a recipe but does not; None for every other file."""
    shape = _at(data, ("model", "preset"))
    if "recipe" in data or data.get("preset") is not None or default_recipe(shape) is not None:
        return None
    return str(shape)


def why(data: dict[str, Any]) -> str:
    """Origin of a file's recipe, in a few words. `data`: the file as written."""
    shape = _at(data, ("model", "preset"))
    if "recipe" in data:
        far = data["recipe"] == OURS and default_recipe(data.get("preset") or shape) != OURS
        return "named in the file" + ", although it was never measured at this size" * far
    if data.get("preset") is not None:
        return f"the published settings of preset: {data['preset']}"
    if default_recipe(shape) == PUBLISHED:
        return f"the published settings of model.preset: {shape}, a size at which {OURS} was never measured"
    return "the file names no recipe, preset or model.preset; measured at 1 M parameters"


def our_warmup(schedule_steps: int) -> int:
    """Warm-up steps of the default recipe: at most a quarter of the schedule."""
    return min(WARMUP, schedule_steps // 4)


def _merged(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """All layers merged, later over earlier. Numbers of an optimizer other than the last named are dropped."""
    for place in NAMES:
        names = [_at(layer, place) for layer in layers]
        chosen = next((name for name in reversed(names) if name is not None), None)
        layers = [
            layer if name in (None, chosen) else _without(layer, place[:-1])
            for layer, name in zip(layers, names, strict=True)
        ]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    return merged


def _at(data: Any, place: tuple[str, ...]) -> Any:
    """The value at a place; None if there is none."""
    for key in place:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _without(data: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """A copy without the section at a place."""
    first, *rest = place
    others = {key: value for key, value in data.items() if key != first}
    return {**others, first: _without(data[first], tuple(rest))} if rest else others


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = _merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged
