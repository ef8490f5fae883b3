"""Which work a round asks for, and which it has used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.errors import FederationError, PhotonError, StoreConflict
from photon_core.run.members import member
from photon_core.run.objects import MANIFEST_LIMIT
from photon_core.run.run import Run
from photon_core.run.updates import check_asked, check_in_time
from photon_core.store.store import Store
from schemas.federation import Federation
from schemas.manifests import RemovalManifest, UpdateManifest
from tests.federations import site
from tests.photon_core.export.conftest import make_rounds as make_rounds  # the fixture


def test_a_manifest_that_nobody_would_read_is_not_committed(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "run")
    note = RemovalManifest(run="run", round=0, files=1, bytes=1, created="x" * MANIFEST_LIMIT)
    with pytest.raises(PhotonError, match=f"at most {MANIFEST_LIMIT} are read"):
        run.record_removal(note)
    assert run.removed(0) is None


def test_no_round_asks_for_a_paused_site(make_rounds: Callable[..., tuple[Federation, Run]]) -> None:
    federation, _ = make_rounds(sites=[site("north"), site("south", paused=True)])
    check_asked(member(federation, "north"), 2)
    with pytest.raises(FederationError, match=r"site 'south' is paused.* remove its 'paused' from the file"):
        check_asked(member(federation, "south"), 2)


@pytest.mark.parametrize("name, t, attempt, used", [
    ("north", 2, 1, None),
    ("north", 1, 1, None),
    ("north", 1, 2, "with attempt 1"),
    ("west", 1, 1, "without the site"),
])  # fmt: skip
def test_an_update_that_its_round_did_not_use(
    name: str, t: int, attempt: int, used: str | None, make_rounds: Callable[..., tuple[Federation, Run]]
) -> None:
    _, run = make_rounds()
    update = UpdateManifest(
        run="small", round=t, site=name, attempt=attempt, base_sha256="", codec="float32", files=[], tokens=1,
        steps=1, metrics={}, data_sha256="", versions={}, previous_sha256="",
    )  # fmt: skip
    if used is None:
        return check_in_time(run, update)
    with pytest.raises(
        StoreConflict, match=f"attempt {attempt} of site '{name}' .* was committed {used}; it is ignored"
    ):
        check_in_time(run, update)
