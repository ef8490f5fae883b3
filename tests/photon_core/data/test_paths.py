"""Where a site's private files are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.data.paths import cache_dir, data_dir, find_site, split_dir, state_dir
from photon_core.errors import FederationError
from schemas.federation import Federation


def test_folders_follow_state_dir(make_federation: Callable[..., Federation], tmp_path: Path) -> None:
    federation = make_federation({"one": "x.txt"})
    assert state_dir(federation, "s") == tmp_path / "state"
    assert data_dir(federation, "s") == tmp_path / "state" / "data"
    assert cache_dir(federation, "s") == tmp_path / "state" / "cache"
    assert split_dir(federation, "s", "one", "valid") == tmp_path / "state" / "data" / "one" / "valid"


def test_default_state_dir_is_by_run_and_site(make_federation: Callable[..., Federation]) -> None:
    sites = [{"name": "a", "streams": [{"name": "one", "source": "x.txt"}]}]
    federation = make_federation({"one": "x.txt"}, sites=sites)
    assert state_dir(federation, "a") == Path("photon-sites/test/a")


def test_unknown_site_is_named_with_those_there_are(make_federation: Callable[..., Federation]) -> None:
    with pytest.raises(FederationError, match="no site is named 'x'; write one of: s"):
        find_site(make_federation({"one": "x.txt"}), "x")
