"""Reading data.json."""

from collections.abc import Callable

import pytest

from photon_core.data.manifest import data_sha256, load_manifest, require_manifest
from photon_core.errors import DataError
from photon_core.hashing import sha256_bytes
from schemas.federation import Federation
from schemas.manifests import DataManifest
from schemas.view import view_of

MANIFEST = DataManifest(
    site="s",
    tokenizer_sha256="0" * 64,
    sequence_length=8,
    vocab_size=257,
    train_documents=1,
    valid_documents=1,
    train_sequences=1,
    valid_sequences=1,
    train_tokens=8,
    valid_tokens=8,
    unigram_perplexity=20.5,
    streams={},
    settings_sha256="1" * 64,
    versions={},
)


def test_round_trip_and_hash(make_federation: Callable[..., Federation]) -> None:
    federation = make_federation({"a": "x.txt"})
    assert load_manifest(view_of(federation, "s")) is None
    view_of(federation, "s").data_dir.mkdir(parents=True)
    content = MANIFEST.model_dump_json().encode()
    (view_of(federation, "s").data_dir / "data.json").write_bytes(content)
    assert load_manifest(view_of(federation, "s")) == require_manifest(view_of(federation, "s")) == MANIFEST
    assert data_sha256(view_of(federation, "s")) == sha256_bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the whole file"),
        ("[]", "the whole file"),
        ('{"site": "s"}', "tokenizer_sha256: Field required"),
        (MANIFEST.model_dump_json().replace('"site"', '"place"'), "site: Field required"),
    ],
)
def test_damaged_manifest_says_what_to_do(
    make_federation: Callable[..., Federation], content: str, message: str
) -> None:
    federation = make_federation({"a": "x.txt"})
    view_of(federation, "s").data_dir.mkdir(parents=True)
    (view_of(federation, "s").data_dir / "data.json").write_text(content)
    with pytest.raises(DataError, match=rf"data\.json: not a data manifest \({message}.*photon prepare --site s"):
        load_manifest(view_of(federation, "s"))
