"""A small federation with prepared shards: what the training tests train on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.federation import Federation
from schemas.manifests import DataManifest, FileEntry, StreamData
from schemas.view import view_of

LENGTH = 16
VOCABULARY = 257


def make_federation(
    folder: Path, sites: tuple[str, ...] = ("alpha",), streams: tuple[str, ...] = ("text",), **local: Any
) -> Federation:
    data = {
        "run": "tiny",
        "store": str(folder / "store"),
        "tokenizer": "bytes",
        "recipe": None,
        "model": {
            "n_layers": 2,
            "d_model": 32,
            "n_heads": 2,
            "vocab_size": VOCABULARY,
            "max_seq_len": LENGTH,
        },
        "rounds": {"count": 3},
        "local": {
            "steps": 5,
            "batch_size": 4,
            "device": "cpu",
            "optimizer": {"lr": 3e-3, "weight_decay": 0.01},
            "schedule": {"warmup_steps": 3, "alpha": 0.1},
            **local,
        },
        "data": {"evaluation_sequences": 8},
        "sites": [
            {
                "name": site,
                "state_dir": str(folder / site),
                "streams": [
                    {"name": stream, "source": "text.jsonl", "proportion": 1 / len(streams)} for stream in streams
                ],
            }
            for site in sites
        ],
    }
    return Federation.model_validate(data)


def write_site(federation: Federation, site: str, sequences: int, seed: int = 5) -> None:
    """MDS shards of sequences with something to learn, and the data manifest over them."""
    from streaming import MDSWriter

    from photon_core.hashing import sha256_file

    length = federation.model.max_seq_len
    random = np.random.default_rng(seed)
    root = view_of(federation, site).data_dir
    shutil.rmtree(root, ignore_errors=True)
    streams = {}
    for stream in view_of(federation, site).streams:
        for split, count in (("train", sequences), ("valid", 12)):
            columns = {"tokens": f"ndarray:uint16:{length}", "id": "uint32"}
            folder = root / stream.name / split
            with MDSWriter(
                out=str(folder), columns=columns, compression="zstd", hashes=["sha256"], size_limit=1 << 12
            ) as writer:
                for number in range(count):
                    tokens = (np.arange(length) * 3 + random.integers(0, VOCABULARY)) % VOCABULARY
                    writer.write({"tokens": tokens.astype(np.uint16), "id": np.uint32(number)})
        files = [
            FileEntry(path=str(path.relative_to(root)), sha256=sha256_file(path), bytes=path.stat().st_size)
            for path in sorted((root / stream.name).rglob("*"))
            if path.is_file()
        ]
        streams[stream.name] = StreamData(documents=1, tokens=1, source_sha256="0", files=files)
    manifest = DataManifest(
        site=site,
        tokenizer_sha256="0",
        sequence_length=length,
        vocab_size=VOCABULARY,
        train_documents=1,
        valid_documents=1,
        train_sequences=sequences,
        valid_sequences=12,
        train_tokens=sequences * length,
        valid_tokens=12 * length,
        unigram_perplexity=64.0,
        streams=streams,
        settings_sha256="0",
        versions={},
    )
    (root / "data.json").write_text(manifest.model_dump_json())


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Federation]:
    """A federation with that many training sequences at each site; keywords as for make_federation."""

    def make(sequences: int = 200, **local: Any) -> Federation:
        federation = make_federation(tmp_path, **local)
        for site in federation.sites:
            write_site(federation, site.name, sequences)
        return federation

    return make
