"""The published settings: shapes of the Photon papers, and the tech report's federated settings.

Source: "The Future of Large Language Model Pre-training is Federated" (arXiv 2405.10853), tables of the
model and federated hyperparameters; "Photon: Federated LLM Pre-Training" (arXiv 2411.02908).
"""

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


def apply_preset(data: dict[str, Any]) -> dict[str, Any]:
    """Federation data with its preset's values under the user's own; mappings are merged.

    The preset's server numbers belong to its server optimizer: a file that names another takes none of them.
    """
    name = data.get("preset")
    preset = FEDERATED_PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        return data
    server = data.get("server")
    if (
        isinstance(server, dict)
        and server.get("optimizer", preset["server"]["optimizer"]) != preset["server"]["optimizer"]
    ):
        preset = {key: value for key, value in preset.items() if key != "server"}
    return _merge(preset, data)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = _merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged
