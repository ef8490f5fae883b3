"""The failure table, the rows of a site: each happens to one site of the same deployed round, and it commits."""

from collections.abc import Iterator

import pytest

from tests.flows.bad_round import SITES, STEPS, BadRound, break_everything, small_disk
from tests.flows.deployment import Workers, deployed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEEN = {  # what manifest, message and table must say of the site
    "trainer": ["local training was started 2 times"],
    "process": ["its flow run was Crashed (", "it was started again"],
    "worker": ["its flow run was Crashed (no heartbeat for 60 s", "it was started again"],
    "exception": ["its flow run was Failed (", "shard.00000.mds"],
    "full": ["its flow run was Failed (", "No space left on device"],
}


@pytest.fixture(scope="module")
def bad(breakable: Workers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadRound]:
    folder = tmp_path_factory.mktemp("bad")
    with small_disk(folder / "sites" / "full") as no_disk:
        federation = deployed(
            breakable,
            folder,
            SITES,
            {"worker": "far"},
            run="bad",
            local={"steps": STEPS, "checkpoint_steps": 20},
            rounds={"count": 1, "quorum": len(SITES) - 1, "deadline": 400},
        )
        yield break_everything(federation, breakable, no_disk)


@pytest.mark.parametrize("site", SEEN)
def test_a_site_recovers_and_its_failure_is_shown(bad: BadRound, site: str) -> None:
    if site == "full" and bad.disk:
        pytest.skip(bad.disk)
    print(f"recovery: {site}: {bad.seconds[site]:.1f} s")
    update = bad.manifest.updates[site]
    assert (update.attempt, update.steps) == (1, STEPS)
    notes = "; ".join(bad.manifest.incidents[site])
    for words in SEEN[site]:
        assert words in notes
    assert notes in bad.message and notes in bad.table


@pytest.mark.parametrize("site", ["trainer", "process", "worker"])
def test_a_killed_training_goes_on_from_its_checkpoint(bad: BadRound, site: str) -> None:
    assert any("checkpoint" in note for note in bad.manifest.incidents[site])


def test_a_corrupt_update_is_left_out_by_name(bad: BadRound) -> None:
    assert set(bad.manifest.updates) == set(SITES) - {"corrupt"}
    reason = bad.manifest.left_out["corrupt"]
    assert ".safetensors" in reason
    assert f"Excluded: corrupt ({reason})" in bad.message and reason in bad.table
