"""Remarks on a round, as in the flow run's state and the terminal."""

from typing import Any

from photon_cli.progress import round_line
from photon_core.evidence.summary import summary
from photon_core.run.history import remarks
from schemas.manifests import ParentRef, RoundManifest


def manifest(**more: Any) -> RoundManifest:
    return RoundManifest(
        run="r", round=3, model_sha256="0", model=[], federation_sha256="0", created="", versions={},
        metrics={"train_loss": 2.0, "perplexity": 9.0}, sampled=["a", "b"], seconds={"sites": 4.0}, **more,
    )  # fmt: skip


def test_an_ordinary_round_has_none():
    assert remarks(manifest()) == []
    assert "\n" not in round_line(manifest(), 5)


def test_every_kind_in_this_order():
    strange = manifest(
        guard=["applied again"], left_out={"b": "crashed", "a": "late"}, paused=["c", "d"],
        incidents={"a": ["started twice", "slow"]}, not_evaluated={"b": "away"},
    )  # fmt: skip
    assert remarks(strange) == [
        "Guard: applied again", "Excluded: a (late)", "Excluded: b (crashed)", "Paused: c, d",
        "a: started twice; slow", "Not evaluated: b (away)",
    ]  # fmt: skip
    columns = ("site", "left out", "not evaluated", "incidents")
    assert [tuple(row[name] for name in columns) for row in summary(strange)] == [
        ("a", "late", "", "started twice; slow"), ("b", "crashed", "away", ""), ("c", "paused", "", ""),
        ("d", "paused", "", ""),
    ]  # fmt: skip
    assert round_line(strange, 5).splitlines()[1:] == [f"  {line}" for line in remarks(strange)]


def test_an_entry_names_the_parents_round():
    ref = ParentRef(store="s", run="world", round=2, sha256="0", member="north")
    assert remarks(manifest(kind="entry", parent=ref, entries=1)) == ["round 3 enters round 2 of run 'world'"]
