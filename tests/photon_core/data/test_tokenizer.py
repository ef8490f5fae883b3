"""Tokenizers: bytes, and a tokenizer.json trained on the spot."""

import json
from pathlib import Path

import numpy as np
import pytest

from photon_core.data.tokenizer import Tokenizer, load_tokenizer
from photon_core.errors import FederationError
from photon_core.hashing import sha256_file


def trained(path: Path, special: list[str], truncate: bool = False) -> Path:
    """A small byte-level BPE over this file's own text."""
    from tokenizers import Tokenizer as HuggingFace
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = HuggingFace(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([Path(__file__).read_text()], trainer)
    if truncate:
        inner.enable_truncation(4)
    inner.save(str(path))
    return path


@pytest.mark.parametrize("text", ["", "plain", "naïve — 日本語 🙂", "\x00\r\n\t", "a" * 5000])
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_round_trip(text: str, kind: str, tmp_path: Path) -> None:
    spec = kind if kind == "bytes" else str(trained(tmp_path / "tokenizer.json", ["<|endoftext|>"]))
    tokenizer = load_tokenizer(spec)
    (ids,) = tokenizer.encode_batch([text])
    assert ids.dtype == np.uint32
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.eot not in ids


def test_bytes_are_the_bytes_of_utf8() -> None:
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.size, tokenizer.eot) == (257, 256)
    assert tokenizer.encode_batch(["aé"])[0].tolist() == [0x61, 0xC3, 0xA9]
    assert tokenizer.sha256 == load_tokenizer("bytes").sha256


def test_file_tokenizer_is_defined_by_its_bytes(tmp_path: Path) -> None:
    path = trained(tmp_path / "tokenizer.json", ["<|endoftext|>"])
    tokenizer: Tokenizer = load_tokenizer(str(path))
    assert tokenizer.sha256 == sha256_file(path) == load_tokenizer(str(tmp_path)).sha256
    assert tokenizer.size == 400
    assert tokenizer.eot == 0


def test_text_cannot_write_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(trained(tmp_path / "tokenizer.json", ["<|endoftext|>"])))
    (ids,) = tokenizer.encode_batch(["one<|endoftext|>two"])
    assert tokenizer.eot not in ids
    assert tokenizer.decode(ids.tolist()) == "one<|endoftext|>two"


def test_truncation_in_the_file_is_ignored(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(trained(tmp_path / "tokenizer.json", ["</s>"], truncate=True)))
    assert len(tokenizer.encode_batch(["many words are here, more than four tokens"])[0]) > 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.json", None, "there is no file '.*gone.json'; write 'bytes', a path"),
        ("broken.json", "{", "is not a tokenizer.json"),
        ("other.json", json.dumps({"a": 1}), "is not a tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(FederationError, match=message):
        load_tokenizer(str(tmp_path / name))


def test_no_end_of_text_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path / "tokenizer.json", ["<pad>"])
    with pytest.raises(FederationError, match=r"no end-of-text token; add one of <\|endoftext\|>"):
        load_tokenizer(str(path))


def test_unreachable_name_says_what_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FederationError, match="'nobody/nothing' is not a file on this machine, and the download"):
        load_tokenizer("nobody/nothing")
