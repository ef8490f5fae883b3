"""Which work a round asks for, and which it has used; which key layers a run keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from photon_core.errors import FederationError, PhotonError, StoreConflict
from photon_core.run.line import progress
from photon_core.run.members import member
from photon_core.run.objects import MANIFEST_LIMIT
from photon_core.run.opening import check_frozen
from photon_core.run.provenance import federation_sha256
from photon_core.run.run import Run
from photon_core.run.updates import check_asked, check_in_time
from photon_core.store.store import Store
from schemas.federation import Federation
from schemas.manifests import RemovalManifest, RunManifest, UpdateManifest
from tests.federations import sample, site
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


def born(federation: Federation) -> RunManifest:
    return RunManifest(
        run="r", created="", federation=federation.model_dump(mode="json"), tokenizer_sha256="t", versions={},
        federation_sha256=federation_sha256(federation),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (None, {}, "gives the key layers blocks.0, but the run was started with none:"),
        ({"key_layers": 1}, None, "gives the key layers none, but the run was started with blocks.0:"),
        ({"key_layers": ["blocks.0.attn"]}, {}, "gives the key layers blocks.0, but .* with blocks.0:"),
    ],
)
def test_a_run_keeps_its_key_layers(then: Any, now: Any, said: str) -> None:
    with pytest.raises(FederationError, match=rf"worldlm\.key_layers {said} restore it, or write another name"):
        check_frozen(born(sample(worldlm=then)), sample(worldlm=now), "t")


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (None, {"key_layers": 0}),
        ({"key_layers": ["blocks"]}, {"key_layers": 1}),
        ({}, {"attention": "mean", "temperature": 2, "residuals": "off", "weights": "tokens"}),
    ],
)
def test_all_else_of_worldlm_may_change(then: Any, now: Any) -> None:
    check_frozen(born(sample(worldlm=then)), sample(worldlm=now), "t")


def test_below_a_parent_rounds_are_counted_without_an_end() -> None:
    child = sample(rounds={}, parent={"store": "/world", "run": "world", "member": "europe"})
    assert (progress(sample(), 3), progress(child, 3)) == ("3 of 5 rounds", "3 rounds")
    check_frozen(born(child), sample(rounds={}, parent={"store": "/w", "run": "w", "member": "e"}), "t")
