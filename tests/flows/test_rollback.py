"""Point 6: a run goes back to an earlier round, trains again, and every command follows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from photon_core.errors import FederationError
from photon_core.hashing import sha256_file
from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.manifests import RoundManifest
from schemas.reading.load import load_federation
from tests.conftest import prepare_file
from tests.photon_cli.test_mistakes import photon

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
SERVER = {"optimizer": "nesterov", "lr": 0.7, "momentum": 0.9, "schedule": {"name": "linear"}}
SAME = ("model_sha256", "sampled", "global_step", "total_tokens", "evaluations", "server")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not wrapped."""
    monkeypatch.setenv("COLUMNS", "160")


def run(file: Path) -> list[RoundManifest]:
    """What `photon run` does, on the session's server."""
    from flows.federated_run import federated_run

    federation = load_federation(file)
    federated_run(federation)
    return history(run_of(federation))


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_rounds_after_a_rollback_are_those_that_were_rolled_back_bit_for_bit(
    write_federation: Callable[..., Path],
):
    """Model, server momentum, sites sampled, private states, stream places and schedules all follow the line; the
    private states and rounds that are newer than the target stay as they are."""
    file = write_federation(
        ("a", "b", "c"), rounds={"count": 4, "sites_per_round": 2, "quorum": 2}, server=SERVER, seed=1
    )
    prepare_file(file)
    first = run(file)
    assert [manifest.round for manifest in first] == [0, 1, 2, 3, 4]
    rounds, states = files(file.parent / "store"), files(file.parent / "sites")
    newer = {name: digest for name, digest in states.items() if "state/00000" in name and "lock" not in name}

    done = photon("rollback", file, "--to", "2", "--reason", "site [b] sent <b>nonsense</b>")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("round 5 is a rollback to round 2, requested by ")
    left = "2 of 4 rounds are left. To continue, write: photon run"
    assert f"(site [b] sent <b>nonsense</b>)\n{left}" in done.stdout
    back = history(run_of(load_federation(file)))[5]
    assert (back.kind, back.to, back.updates, back.place) == ("rollback", 2, {}, 2)
    assert (back.model, back.optimizer, back.total_tokens) == (
        first[2].model,
        first[2].optimizer,
        first[2].total_tokens,
    )

    again = run(file)
    assert [(m.round, m.place) for m in again[5:]] == [(5, 2), (6, 3), (7, 4)]
    for old, new in zip(first[3:], again[6:], strict=True):
        assert {key: getattr(old, key) for key in SAME} == {key: getattr(new, key) for key in SAME}
        assert [entry.sha256 for entry in old.optimizer] == [entry.sha256 for entry in new.optimizer] != []
        assert not new.incidents and {s: u.metrics["train_loss"] for s, u in old.updates.items()} == {
            s: u.metrics["train_loss"] for s, u in new.updates.items()
        }
    store, sites = files(file.parent / "store"), files(file.parent / "sites")
    assert rounds == {name: store[name] for name in rounds} and newer == {name: sites[name] for name in newer}

    _look(file)
    _state_that_is_gone_starts_afresh_by_name(file)


def _look(file: Path) -> None:
    """Every command understands the line 0, 1, 2, 6, 7."""
    facts = json.loads(photon("status", file, "--json").stdout)
    assert (facts["committed"], facts["trained"], facts["count"], facts["seconds_left"]) == (7, 4, 4, 0.0)
    assert [r["round"] for r in facts["rounds"] if r["rolled_back"]] == [3, 4, 5]
    shown = photon("status", file).stdout
    assert "4 of 4 rounds" in shown and "5      round 5 is a rollback to round 2" in shown
    assert shown.count("all, rolled back") == 2
    assert "all 4 rounds are committed" in photon("run", file, "--quiet").stdout
    page = file.parent / "page.html"
    assert photon("report", file, "--to", page).returncode == 0
    text = page.read_text()
    assert "Round 5 is a rollback to round 2" in text and "<b>nonsense" not in text
    assert "4, rolled back" in text and ">5, rollback to 2<" in text and "4 of 4" in text
    assert photon("compare", file, file).stdout.count("4") >= 2
    done = photon("export", file, "--round", "5", "--to", file.parent / "model")
    assert done.returncode == 0, done.stderr
    assert "# tiny, round 2" in (file.parent / "model" / "README.md").read_text()
    assert photon("generate", file, "--prompt", "x", "--round", "5").returncode == 0
    assert photon("plan", file).returncode == 0
    kept = photon("gc", file, "--keep-last", "3", "--dry-run").stdout
    assert "kept whole: round 2, 5 to 7," in kept, "round 2's files are those of round 5"
    done = photon("rerun", file, "--round", "5", "--site", "a")
    assert done.returncode == 4 and "round 5 of run 'tiny' is already committed" in done.stderr


def _state_that_is_gone_starts_afresh_by_name(file: Path) -> None:
    """Back to round 4, which was rolled back itself, in a flow run; a site that has lost that state reports it."""
    from flows.rollback import rollback

    federation = load_federation(file)
    state = rollback(federation, 4, "the other way was better", return_state=True)
    assert state.is_completed() and state.message.startswith("round 8 is a rollback to round 4, requested by ")
    with pytest.raises(
        FederationError, match="round 8, the latest of run 'tiny', already has the model of round 4"
    ):
        rollback(federation, 4)
    site = history(run_of(federation))[4].sampled[0]
    for lost in (file.parent / "sites" / site / "state").glob("00000[0-4]-0001/training.pt"):
        lost.unlink()
    text = file.read_text().replace("count: 4", "count: 5").replace("sites_per_round: 2", "sites_per_round: 3")
    file.write_text(text)
    last = run(file)[9]
    assert last.place == 5
    (note,) = last.incidents[site]
    assert "is missing or damaged; optimizer state and data position are reset" in note
    assert last.updates[site].metrics["state_lost"] == 1.0
