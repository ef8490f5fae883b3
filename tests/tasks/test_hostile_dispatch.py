"""A site that commits what is no update before it is asked: the round waits until its deadline, and no longer."""

import time
from pathlib import Path

import pytest

from photon_core.aggregation.round import aggregate_round
from photon_core.errors import QuorumMissed
from photon_core.run.members import member
from photon_core.store.store import Store
from schemas.federation import Federation
from tests.photon_core.hostile_cases import CASES, ON_DISK
from tests.photon_core.hostile_updates import MODES, attack, make_run, settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
MODE = MODES["float32, flat, on a disk"]
CAUSES = {"a": "a file of 1 TiB", "b": "the manifest is a folder", "c": "no manifest"}


def test_what_is_no_update_holds_a_round_until_its_deadline_only(tmp_path: Path) -> None:
    from prefect import flow

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan
    from tasks.remote.dispatch import dispatch_round

    file = settings(MODE, str(tmp_path), 3)
    sites = [{**site, "pool": f"hostile-{site['name']}"} for site in file["sites"]]  # no other test's
    changes = {"rounds": {"count": 3, "quorum": 1}, "deploy": {"pool": "hostile"}, "sites": sites}
    federation = Federation.model_validate(file | changes)
    run, table = make_run(Store(str(tmp_path)), federation, MODE), CASES | ON_DISK
    for site, case in CAUSES.items():
        attack(run, 1, MODE, table[case][0], site)
    apply(plan(federation))

    @flow
    def waiting() -> list[str]:
        deadline = time.time() + 4
        asked = [dispatch_round.submit(member(federation, site), 1, deadline) for site in CAUSES]
        return [str(future.state.message) for future in asked if future.wait() is None]

    assert all("was not finished at the deadline" in message for message in waiting())
    with pytest.raises(QuorumMissed) as missed:
        aggregate_round(run, federation, 1, sorted(CAUSES), {})
    assert all(table[case][1] in str(missed.value) for case in CAUSES.values())
