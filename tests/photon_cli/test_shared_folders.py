"""Two federations with one folder: the second is refused, and the first keeps what it has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.data.quality import check_shards
from photon_core.data.tokenizer import load_tokenizer
from schemas.errors import FederationError
from schemas.reading.load import load_federation
from schemas.view import view_of
from tests.photon_cli.test_nothing_is_deleted import Photon, contents, edit, photon

__all__ = ["photon"]


@pytest.mark.parametrize("key", ["state_dir", "shards"])
def test_another_federations_site_keeps_its_shards(
    key: str, write_federation: Callable[..., Path], photon: Photon, tmp_path: Path
) -> None:
    """Two federations with one folder: neither site is ever given the other's text."""
    first = write_federation(sites=("a",), folder="first")
    second = write_federation(sites=("b",), folder="second", run="other")
    for file in (first, second):
        edit(file, **{key: str(tmp_path / "shared")})
    assert photon("prepare", first)[0] == 0
    before = contents(tmp_path / "shared")
    code, said = photon("prepare", second)
    assert code == 2 and "is the data of site 'a', not of 'b'" in said.replace("\n", " ")
    with pytest.raises(FederationError, match="is the data of site 'a'"):
        check_shards(view_of(load_federation(second), "b"), load_tokenizer("bytes").sha256)
    assert contents(tmp_path / "shared") == before
