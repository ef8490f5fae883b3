"""A run's tokenizer as files for transformers, with the same ids for the same text."""

import json
from pathlib import Path
from typing import Any

from photon_core.data.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

END_OF_TEXT = "<|endoftext|>"


def write_tokenizer(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        tokenizer: tokenizer of the run.
        folder: output folder.
        length: maximum sequence length of the model, in tokens.
    """
    if isinstance(tokenizer, FileTokenizer):
        content, end = tokenizer.content, tokenizer.end_of_text
    else:
        assert isinstance(tokenizer, ByteTokenizer)
        content, end = json.dumps(byte_tokenizer(), ensure_ascii=False, indent=1).encode() + b"\n", END_OF_TEXT
    (folder / "tokenizer.json").write_bytes(content)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "eos_token": end,
        "bos_token": end,
        "pad_token": end,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # as in training: text that spells out a special token is not that token
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def byte_tokenizer() -> dict[str, Any]:
    """The tokenizer.json of the tokenizer 'bytes': byte b is id b, end-of-text is 256.

    It is a byte-level BPE without merges. Its vocabulary has the printable stand-ins of the 256 bytes.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    end = {"content": END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256, **end, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(_stand_ins())},
            "merges": [],
        },
    }


def _stand_ins() -> list[str]:
    """The character that byte-level tokenizers write for each byte (GPT-2's table, openai/gpt-2 encoder.py).

    It is the byte's own character if that is printable, else the next free one from U+0100.
    """
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    stand_ins, spare = [], 256
    for byte in range(256):
        stand_ins.append(chr(byte if byte in prints else spare))
        spare += byte not in prints
    return stand_ins
