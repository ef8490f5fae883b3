"""A small site with two streams of real text: the standard library's own sources, cut into documents."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.federation import Federation


def _library_texts(*modules: str, size: int = 1500) -> list[str]:
    """Documents of about `size` characters from the standard library's modules."""
    texts: list[str] = []
    for module in modules:
        content = (Path(json.__file__).parent.parent / f"{module}.py").read_text()
        texts += [content[i : i + size] for i in range(0, len(content), size) if content[i : i + size].strip()]
    return texts


def _write_jsonl(path: Path, texts: list[Any], key: str = "text") -> Path:
    """One JSON object a line; gzip if the name ends so."""
    content = "".join(json.dumps({"meta": {}, key: text}) + "\n" for text in texts).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def library_texts() -> Callable[..., list[str]]:
    """Function: documents of real text from the standard library's modules."""
    return _library_texts


@pytest.fixture
def write_jsonl() -> Callable[..., Path]:
    """Function: a .jsonl (or .jsonl.gz) file of texts."""
    return _write_jsonl


@pytest.fixture
def make_federation(tmp_path: Path) -> Callable[..., Federation]:
    """A federation of one site 's' whose streams are given as name -> source; other sections as keywords."""

    def make(streams: dict[str, str], **sections: Any) -> Federation:
        share = 1 / len(streams)
        model = {"n_layers": 1, "d_model": 16, "n_heads": 2, "vocab_size": 257, "max_seq_len": 64}
        return Federation.model_validate(
            {
                "run": "test",
                "store": str(tmp_path / "store"),
                "seed": 17,
                "tokenizer": sections.pop("tokenizer", "bytes"),
                "model": {**model, **sections.pop("model", {})},
                "rounds": {"count": 1},
                "local": {"steps": 2, "batch_size": 4},
                "data": {"validation_share": 0.2, **sections.pop("data", {})},
                "sites": [
                    {
                        "name": "s",
                        "state_dir": str(tmp_path / "state"),
                        "streams": [{"name": n, "source": s, "proportion": share} for n, s in streams.items()],
                    }
                ],
                **sections,
            }
        )

    return make


@pytest.fixture
def two_streams(tmp_path: Path, make_federation: Callable[..., Federation]) -> Federation:
    """A federation whose site has two sources, not yet prepared."""
    one = _write_jsonl(tmp_path / "raw" / "one.jsonl.gz", _library_texts("socket", "queue"))
    two = tmp_path / "raw" / "two"
    two.mkdir()
    for i, text in enumerate(_library_texts("heapq", "bisect")):
        (two / f"{i:03d}.txt").write_text(text)
    return make_federation({"one": str(one), "two": str(two / "*.txt")})
