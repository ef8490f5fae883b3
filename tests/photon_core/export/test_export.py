"""Exports: transformers computes the same logits and token ids, offline, in a separate process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import CorruptFile, FederationError, PhotonError
from photon_core.export.card import model_card
from photon_core.export.export import export_model
from photon_core.model.gpt2 import gpt2_places
from photon_core.run.history import history
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import StartRef
from tests.federations import committed
from tests.photon_core.export.conftest import TEXTS

Rounds = Callable[..., tuple[Federation, Run]]
IDS = np.random.default_rng(5).integers(0, 263, (3, 20))
LOADER = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
texts, results = json.loads(sys.argv[1]), []
for folder in sys.argv[3:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        np.save(folder + ".npy", model(torch.tensor(json.loads(sys.argv[2]))).logits.numpy())
    ids = [tokenizer(text)["input_ids"] for text in texts]
    results.append([ids, [tokenizer.decode(i) for i in ids], model.generation_config.eos_token_id])
json.dump(results, sys.stdout)
"""


def byte_pairs(path: Path) -> str:
    """A small byte-level BPE, of this file's text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([Path(__file__).read_text()], trainer)
    inner.save(str(path))
    return str(path)


@pytest.mark.slow
def test_transformers_loads_it_in_a_fresh_process_without_a_network(make_rounds: Rounds, tmp_path: Path) -> None:
    import torch

    from photon_core.model.decoder import load_decoder
    from photon_core.training.exchange import Theta

    tokenizers = {"bytes": "bytes", "file": byte_pairs(tmp_path / "tokenizer.json")}
    for kind, tokenizer in tokenizers.items():
        federation, run = make_rounds(tokenizer=tokenizer, run=kind)
        export_model(committed(federation), tmp_path / f"out-{kind}")
    manifest = run.round(1)
    assert manifest is not None
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    folders = [str(tmp_path / f"out-{kind}") for kind in tokenizers]
    arguments = [json.dumps(TEXTS), json.dumps(IDS.tolist()), *folders]
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]

    files = [f"{run.store.url}/{run.round_dir(1)}/{entry.path}" for entry in manifest.model]
    decoder = load_decoder(federation.model, Theta(files, federation.model).tensors())
    with torch.no_grad():
        expected = decoder(torch.from_numpy(IDS)).numpy()
    assert np.abs(expected).max() > 1  # so that the bound says something
    for tokenizer, folder, told in zip(tokenizers.values(), folders, json.loads(done.stdout), strict=True):
        ours = load_tokenizer(tokenizer)
        ids = [i.tolist() for i in ours.encode_batch(TEXTS)]
        assert told == [ids, TEXTS, ours.eot]
        assert np.abs(np.load(f"{folder}.npy") - expected).max() < 1e-5


def test_a_place_that_is_taken_is_refused_before_work(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, _ = make_rounds()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    with pytest.raises(FederationError, match=r"taken: the folder is not empty, and nothing is overwritten"):
        export_model(committed(federation), tmp_path / "taken")
    with pytest.raises(FederationError, match="is a file or a link"):
        export_model(committed(federation), tmp_path / "file")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    export_model(committed(federation, 0), tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_file_that_was_changed_stops_it_and_leaves_nothing(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, run = make_rounds()
    manifest = run.round(1)
    assert manifest is not None
    path = Path(run.store.url) / run.round_dir(1) / manifest.model[1].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=path.name):
        export_model(committed(federation, 1), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_round_that_is_not_there_and_another_runs_model(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, _ = make_rounds()
    with pytest.raises(PhotonError, match="round 7 of run 'small' is not committed; write --round 0 to 1"):
        export_model(committed(federation, 7), tmp_path / "out")
    other: dict[str, Any] = federation.model_dump()
    other["model"]["n_layers"] = 1
    with pytest.raises(FederationError, match="the run was started with"):
        export_model(committed(Federation.model_validate(other)), tmp_path / "out")
    with pytest.raises(PhotonError, match="has no rounds"):
        export_model(committed(Federation.model_validate({**other, "run": "nothing"})), tmp_path / "out")


def test_the_card_tells_the_manifests_numbers(make_rounds: Rounds, tmp_path: Path) -> None:
    federation, run = make_rounds()
    export_model(committed(federation), tmp_path / "out")
    card, manifest = (tmp_path / "out" / "README.md").read_text(), run.round(1)
    assert manifest is not None
    assert "| north | web | 1 | 1,234 | 99.5% |" in card
    assert "| south | 2.72 | 1,000 |\n| all | 2.75 | 2,000 |" in card
    assert manifest.model_sha256 in card
    assert "1,240 tokens" in card
    assert "| theta of round 0 | a function of the seed |" in card
    assert "| node | `small`, a federation |\n| state | committed in round 1 of run `small` |" in card
    rounds = history(run)
    source = StartRef(kind="checkpoint", source="/home/ada/models/gpt2", sha256={"model.safetensors": "ab" * 32})
    started = [rounds[0].model_copy(update={"start": source}), rounds[1]]
    origin = f"| theta of round 0 | the checkpoint `gpt2`: model.safetensors `{'ab' * 32}` |"
    assert origin in model_card(committed(federation), started)


def test_every_parameter_has_one_place() -> None:
    from schemas.sections.model import Model

    places = gpt2_places(Model(n_layers=11, d_model=8, n_heads=2, vocab_size=9, max_seq_len=5, expansion_ratio=3))
    assert len({place.name for place in places.values()}) == len(places) == 4 + 12 * 11
    assert places["blocks.10.ffn.up_proj.weight"].name == "transformer.h.10.mlp.c_fc.weight"
    assert places["blocks.10.ffn.up_proj.weight"].shape == (8, 24)
    assert places["wpe.weight"].shape == (5, 8)


@pytest.mark.slow
def test_generate_follows_the_model(make_rounds: Rounds) -> None:
    import torch

    from photon_core.export.generate import Decoding, check_tokens, generate
    from photon_core.model.decoder import load_decoder
    from photon_core.training.exchange import Theta

    federation, run = make_rounds()
    manifest = run.round(0)
    assert manifest is not None
    files = [f"{run.store.url}/{run.round_dir(0)}/{entry.path}" for entry in manifest.model]
    decoder = load_decoder(federation.model, Theta(files, federation.model).tensors())
    ids = list("Once é".encode())
    for _ in range(9):
        with torch.no_grad():
            logits = decoder(torch.tensor([ids]))[0, -1]
        ids.append(int(logits.argmax()))
    expected = bytes(i for i in ids[7:] if i < 256).decode(errors="replace")
    pieces: list[str] = []
    text = generate(committed(federation, 0), "Once é", Decoding(9, 0.0, 0, 1), pieces.append)
    assert text == "".join(pieces) == expected

    model = committed(federation, 0)
    drawn = [generate(model, "Once", Decoding(12, 1.0, 20, seed), pieces.append) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(FederationError, match="--tokens 20: the model has 20 positions; write at most 19"):
        check_tokens(federation.model, 20)
    assert generate(committed(federation, 1), "", Decoding(3, 0.0, 0, 1), pieces.append) is not None
