"""Checkpoints to start from: what transformers saved computes the same here; a misfit is reported by name."""

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from photon_core.errors import FederationError
from photon_core.export.export import export_model
from photon_core.model.foreign import Checkpoint
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.sections.model import Model
from tests.federations import committed

MODEL = Model(n_layers=2, d_model=24, n_heads=3, vocab_size=31, max_seq_len=10)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that transformers made and saved, with every bias and norm at work, and its logits."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=2, n_embd=24, n_head=3, vocab_size=31, n_positions=10, activation_function="gelu",
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(4)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "many", max_shard_size="10KB")
    model.to(torch.bfloat16).save_pretrained(folder / "half")
    for kind in ("one", "half"):
        tokens = torch.arange(20).reshape(2, 10)
        loaded = GPT2LMHeadModel.from_pretrained(folder / kind, torch_dtype=torch.float32)
        with torch.no_grad():
            np.save(folder / f"{kind}.npy", loaded(tokens).logits.numpy())
    return folder


def logits(files: list[Path]) -> Any:
    import torch

    from photon_core.model.decoder import load_decoder
    from photon_core.training.exchange import Theta

    decoder = load_decoder(MODEL, Theta([str(file) for file in files], MODEL).tensors())
    with torch.no_grad():
        return decoder(torch.arange(20).reshape(2, 10)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "many", "half"])
def test_a_gpt2_of_transformers_computes_the_same_here(kind: str, saved: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(saved / kind), MODEL, {})
    files, hashes = checkpoint.write(tmp_path)
    expected = np.load(saved / f"{'half' if kind == 'half' else 'one'}.npy")
    assert np.abs(logits(files) - expected).max() < 1e-5 < np.abs(expected).max()
    assert set(hashes) == {path.name for path in (saved / kind).glob("*.safetensors")}
    assert checkpoint.notes == []


def test_an_export_comes_back_bit_for_bit(
    make_rounds: Callable[..., tuple[Federation, Run]], tmp_path: Path
) -> None:
    federation, run = make_rounds()
    export_model(committed(federation, 1), tmp_path / "out")
    manifest = run.round(1)
    assert manifest is not None
    files, _ = Checkpoint(str(tmp_path / "out"), federation.model, {}).write(tmp_path)
    ours = f"{run.store.url}/{run.round_dir(1)}/model"
    again, _ = Checkpoint(ours, federation.model, {}).write(tmp_path / "out")
    before = merged([Path(run.store.url) / run.round_dir(1) / entry.path for entry in manifest.model])
    for after in (merged(files), merged(again)):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


def merged(files: list[Path]) -> dict[str, Any]:
    return {name: value for file in files for name, value in load_file(file).items()}


def test_by_url_and_by_file_without_a_prefix_and_with_masks(saved: Path, tmp_path: Path) -> None:
    """As the first published GPT-2 checkpoints are."""
    import fsspec

    tensors = {
        name.removeprefix("transformer."): value
        for name, value in load_file(saved / "one" / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = np.ones((1, 1, 10, 10), np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    save_file(tensors, tmp_path / "old.safetensors")
    url = f"memory://{uuid.uuid4().hex}/old.safetensors"
    with fsspec.open(url, "wb") as file:
        file.write((tmp_path / "old.safetensors").read_bytes())
    checkpoint = Checkpoint(url, MODEL, {})
    files, _ = checkpoint.write(tmp_path)
    assert np.abs(logits(files) - np.load(saved / "one.npy")).max() < 1e-5
    assert "no config.json" in checkpoint.notes[0]


def broken(saved: Path, folder: Path, tensors: dict[str, Any], **config: Any) -> str:
    """A copy of the checkpoint with other tensors (None takes one away) or another configuration."""
    there = load_file(saved / "one" / "model.safetensors") | tensors
    folder.mkdir(exist_ok=True)
    save_file({name: value for name, value in there.items() if value is not None}, folder / "model.safetensors")
    written = json.loads((saved / "one" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    return str(folder)


NAN = np.full((24,), np.nan, np.float32)
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"transformer.wte.weight": np.zeros((33, 24), np.float32)},
        {},
        "tensor 'transformer.wte.weight' of '{place}' has shape [33, 24], but the file's model needs [31, 24]; "
        "correct the file's model section, or write another checkpoint",
    ),
    (
        {"transformer.h.1.ln_1.weight": None},
        {},
        "'{place}' has no tensor 'transformer.h.1.ln_1.weight', which the file's model has with shape [24] "
        "(1 missing); the checkpoint has 2 blocks, model.n_layers is 2; correct the file's model section, or "
        "write another checkpoint",
    ),
    (
        {"transformer.h.2.ln_1.weight": NAN},
        {},
        "'{place}' has a tensor 'transformer.h.2.ln_1.weight' of shape [24], which the file's model lacks; "
        "correct the file's model section, or write another checkpoint",
    ),
    (
        {"transformer.ln_f.bias": np.zeros(24, np.int32)},
        {},
        "tensor 'transformer.ln_f.bias' of '{place}' is I32; write a checkpoint in one of F32, F16, BF16",
    ),
    (
        {},
        {"n_head": 4},
        "config.json of '{place}' has n_head 4, but the file's model has 3; correct the file's model section, or "
        "write another checkpoint",
    ),
    (
        {},
        {"activation_function": "relu"},
        "config.json of '{place}' has the activation 'relu', but the model has GELU; write another checkpoint",
    ),
    (
        {"transformer.ln_f.bias": NAN},
        {},
        "tensor 'transformer.ln_f.bias' of '{place}' holds NaN or infinity; write another checkpoint",
    ),
    (
        {"lm_head.weight": np.zeros((31, 24), np.float32)},
        {},
        "'lm_head.weight' of '{place}' differs from its embedding, but the model ties them; write another "
        "checkpoint",
    ),
]


@pytest.mark.parametrize(("tensors", "config", "message"), REFUSED)
def test_what_does_not_fit_is_told(
    tensors: dict[str, Any], config: dict[str, Any], message: str, saved: Path, tmp_path: Path
) -> None:
    place = broken(saved, tmp_path / "bad", tensors, **config)
    with pytest.raises(FederationError) as caught:
        Checkpoint(place, MODEL, {}).write(tmp_path)
    assert str(caught.value) == "start.checkpoint: " + message.replace("{place}", place)


def test_gelu_new_is_taken_and_told(saved: Path, tmp_path: Path) -> None:
    place = broken(saved, tmp_path / "new", {}, activation_function="gelu_new")
    assert Checkpoint(place, MODEL, {}).notes == [
        "the checkpoint was trained with gelu_new; the model continues with the exact GELU"
    ]


def test_places_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"there is no \.safetensors file in"):
        Checkpoint(str(tmp_path / "nowhere"), MODEL, {})
    with pytest.raises(FederationError, match=r"there is no file '.*absent\.safetensors'"):
        Checkpoint(str(tmp_path / "absent.safetensors"), MODEL, {})
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(FederationError, match=r"pytorch_model.bin is a pickle, which may run code: convert it"):
        Checkpoint(str(tmp_path), MODEL, {})
    save_file({"encoder.weight": NAN}, tmp_path / "other.safetensors")
    with pytest.raises(FederationError, match=r"holds tensors such as 'encoder.weight': it is neither"):
        Checkpoint(str(tmp_path), MODEL, {})
    (tmp_path / "other.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(FederationError, match="is not a safetensors file of 22 bytes"):
        Checkpoint(str(tmp_path), MODEL, {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.json",
            "{",
            r"config\.json' is not JSON \(Expecting property name.*\); save the checkpoint again, or",
        ),
        ("config.json", "[1]", r"config\.json' is not JSON \(not an object\)"),
        ("config.json", b"\xff", r"config\.json' is not JSON \('utf-8' codec can't"),
        ("model.safetensors.index.json", "{}", r"index\.json' has no weight_map; save the checkpoint again, or"),
        ("model.safetensors.index.json", '{"weight_map": {"wte": 7}}', r"index\.json' has no weight_map"),
    ],
)
def test_damaged_json_beside_the_tensors(
    name: str, content: str | bytes, message: str, saved: Path, tmp_path: Path
) -> None:
    place = Path(broken(saved, tmp_path / "bad", {}))
    if name != "config.json":
        (place / "model.safetensors").rename(place / "model-00001-of-00001.safetensors")
    (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FederationError, match=message):
        Checkpoint(str(place), MODEL, {})


def test_two_checkpoints_in_one_folder_are_told_apart_from_one(
    make_rounds: Callable[..., tuple[Federation, Run]], tmp_path: Path
) -> None:
    federation, run = make_rounds()
    manifest = run.round(1)
    assert manifest is not None
    for number, entry in enumerate((*manifest.model, manifest.model[0])):
        shutil.copyfile(f"{run.store.url}/{run.round_dir(1)}/{entry.path}", tmp_path / f"{number}.safetensors")
    with pytest.raises(FederationError, match=r"the tensor '.*' is in two files of '.*'; write the path of one"):
        Checkpoint(str(tmp_path), federation.model, {})
