"""Point 5: what a site claims is bounded by what can be known. One site of several lies in the store, round by
round, and the federation continues as without it, with the site named."""

import json
from collections.abc import Callable, Mapping
from math import exp, log

import numpy as np
import pytest

from photon_core.aggregation.candidate import Candidate, RoundLog
from photon_core.aggregation.claims import largest_loss
from photon_core.aggregation.commit import commit
from photon_core.aggregation.round import aggregate_round, apply_again
from photon_core.errors import ModelDiverged
from photon_core.evidence.evaluations import commit_evaluation, evaluation
from photon_core.evidence.metrics import LARGEST_LOSS
from photon_core.run.run import Run, model_sha256
from photon_core.run.sampling import TOKENS, sampled_members
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from tests.photon_core.aggregation.test_guard import GOAL, SITES, federation, memory, model, start, train

MOST = 64 * 15  # held-out tokens that a site of this file can have evaluated
EVIL = "b"
Scores = dict[str, float]
Change = Callable[[np.ndarray], np.ndarray]


def same(change: np.ndarray) -> np.ndarray:
    return change


def changed(setting: Federation, **changes: object) -> Federation:
    return Federation.model_validate(setting.model_dump(exclude={"preset"}) | changes)


def scores(loss: float) -> Scores:
    return {"loss": loss, "perplexity": exp(min(loss, LARGEST_LOSS)), "tokens": 120.0}


def evaluate(run: Run, candidate: Candidate, lie: Scores | None) -> dict[str, Scores]:
    """As deployed sites do, through the store; the hostile one writes what it likes."""
    t, files = candidate.t, candidate.result.model
    away = model(run, t, files).astype(np.float64) - GOAL
    for site in SITES:
        if site == EVIL and lie is not None:
            path = f"{run.round_dir(t)}/sites/{site}/evaluation-{model_sha256(files)[:16]}.json"
            run.store.create(path, json.dumps(lie).encode())
        else:
            commit_evaluation(run, t, site, files, scores(min(float(np.sqrt((away**2).mean())), LARGEST_LOSS)))
    found = {site: evaluation(run, t, site, files) for site in SITES}
    return {site: told for site, told in found.items() if told is not None}


def make_round(
    run: Run,
    setting: Federation,
    t: int,
    change: Change = same,
    lie: Scores | None = None,
    evil: Change | None = None,
    **claims: float,
) -> RoundManifest:
    """The hostile site's update is of `evil`, and claims `claims`."""
    for site in SITES:
        own = {"change": evil or change, **claims} if site == EVIL else {"change": change}
        train(run, t, site, **own)  # type: ignore[arg-type]
    candidate = aggregate_round(run, setting, t, list(SITES), {})
    evaluations = evaluate(run, candidate, lie)
    while again := apply_again(run, setting, candidate, evaluations):
        candidate = again
        evaluations = evaluate(run, candidate, lie)
    return commit(run, setting, candidate, RoundLog(list(SITES), evaluations))


def test_tokens_and_losses_of_an_evaluation_have_bounds() -> None:
    run, setting = start(memory()), federation(lr=0.7)
    lie = {"loss": 0.0, "perplexity": 1e300, "tokens": 1e15, "loss/s": 1e14, "tokens/s": 1e15, "loss/x": 1.0}
    for t in range(1, 4):
        manifest = make_round(run, setting, t, lie=lie)
        told = manifest.evaluations[EVIL]
        assert told == {"loss": 0.0, "perplexity": 1.0, "tokens": MOST}
        assert manifest.incidents[EVIL] == [
            f"it claims 1e+15 evaluated tokens; only {MOST} are possible, and count"
        ]
        honest = manifest.evaluations["a"]["loss"]
        assert manifest.metrics["loss"] == pytest.approx(2 * 120 * honest / (2 * 120 + MOST))
        assert manifest.guard == [] and manifest.lowered == 0


def test_a_site_that_claims_no_loss_at_all_does_not_blind_the_guard() -> None:
    run, setting = start(memory()), federation(lr=0.7, guard={"norm_factor": None})
    lie = {"loss": 0.0, "perplexity": 1.0, "tokens": 1e15}
    for t in (1, 2, 3):
        make_round(run, setting, t, lie=lie)
    manifest = make_round(run, setting, 4, lambda c: 60 * c, lie)
    assert manifest.lowered > 0 and manifest.server["lr"] == 0.7 * 0.5**manifest.lowered
    assert "by the median of 3 sites" in manifest.guard[0]
    assert f"out of line at most sites, but not at {EVIL}" in manifest.guard[0]


@pytest.mark.parametrize("loss", [699.0, LARGEST_LOSS, 1e14])
@pytest.mark.parametrize("quorum", [2, 3])
def test_a_site_that_claims_a_huge_loss_neither_sets_the_guard_off_nor_vetoes_a_round(
    loss: float, quorum: int
) -> None:
    run, setting = start(memory()), changed(federation(lr=0.7), rounds={"count": 12, "quorum": quorum})
    lie, losses = {"loss": loss, "perplexity": 1e304, "tokens": 1e15}, []
    for t in range(1, 5):
        manifest = make_round(run, setting, t, lie=lie if t > 1 else None)
        assert manifest.lowered == 0 and manifest.server["lr"] == 0.7
        named = [f"the validation loss is out of line at {EVIL}, but not at most sites"]
        assert manifest.guard == (named if t > 1 else [])
        assert manifest.metrics["loss"] <= largest_loss(setting) == 3 * log(257)
        losses.append(manifest.evaluations["a"]["loss"])
    assert losses == sorted(losses, reverse=True)


def test_a_divergence_of_all_sites_is_still_seen() -> None:
    run, setting = start(memory()), federation(lr=0.7, guard={"norm_factor": None})
    make_round(run, setting, 1)
    with pytest.raises(ModelDiverged, match="has no finite validation loss at a, c,"):
        make_round(run, setting, 2, lambda c: 0 * c + 1e6, scores(1.0))
    manifest = make_round(start(memory()), setting, 1, lambda c: 0 * c + 30, first_loss=0.0)
    assert manifest.guard == [], "nobody else has said what the loss was"


def test_what_a_site_says_of_its_own_training_has_bounds() -> None:
    run, setting = start(memory()), federation(lr=0.7)
    told = {"valid_loss": 0.0, "valid_tokens": 1e15, "train_loss": 1e40, "first_loss": -1e40}
    manifest = make_round(run, setting, 1, **told)
    assert manifest.metrics["train_loss"] == pytest.approx((2 + largest_loss(setting)) / 3)
    assert manifest.metrics["loss_before"] == 0.0 and manifest.guard == []
    losses = {"valid_loss": 5.0, "valid_tokens": 120.0}
    for site in SITES:
        train(run, 2, site, same, **(told if site == EVIL else losses))
    candidate = aggregate_round(run, setting, 2, list(SITES), {})
    found = commit(run, setting, candidate, RoundLog(list(SITES), evaluate(run, candidate, None)))
    assert found.metrics["loss_before"] == pytest.approx(2 * 120 * 5 / (2 * 120 + MOST))


@pytest.mark.parametrize("tree_above", [None, 2])
@pytest.mark.parametrize(
    ("size", "optimizer"), [(1e3, "fedavg"), (1e3, "nesterov"), (1e30, "nesterov"), (1e30, "fedadam")]
)
def test_a_huge_change_costs_its_site_the_round_and_the_others_nothing(
    size: float, optimizer: str, tree_above: int | None
) -> None:
    """By its norm it would set the guard off in every round; of 1e30, the step overflows."""
    server = {"optimizer": optimizer, "lr": 0.5, **({"momentum": 0.5} if optimizer == "nesterov" else {})}
    run, alone = start(memory(), model_norm=40.0), start(memory(), model_norm=40.0)
    regions = {"tree_above": tree_above, "fan_out": 2} if tree_above else {}
    setting = changed(federation(**server), aggregation=regions)

    def huge(change: np.ndarray) -> np.ndarray:
        return 0 * change + np.float32(size)

    for t in range(1, 5):
        manifest = make_round(run, setting, t, evil=huge if t > 1 else None)
        for site in SITES if t == 1 else ("a", "c"):
            train(alone, t, site, same)
        candidate = aggregate_round(alone, setting, t, list(SITES), {})
        expected = commit(alone, setting, candidate, RoundLog(list(SITES), evaluate(alone, candidate, None)))
        assert manifest.server["lr"] == 0.5 and manifest.lowered == 0
        assert manifest.model_sha256 == expected.model_sha256
        if t > 1:
            assert "over 10 times the sites' median" in manifest.left_out[EVIL]
            assert f"aggregation is retried without {EVIL}" in manifest.guard[0]


def fednova(time_limit: float | None, steps: Mapping[str, int]) -> np.ndarray:
    """The model after a round in which the sites claim these numbers of local steps, of 5."""
    setting = federation(weights="fednova", guard={"tries": 0})
    sites = [{**site.model_dump(exclude_none=True), "time_limit": time_limit} for site in setting.sites]
    run, setting = start(memory()), changed(setting, sites=sites)
    for site in SITES:
        train(run, 1, site, same, steps=steps[site])
    candidate = aggregate_round(run, setting, 1, list(SITES), {})
    commit(run, setting, candidate, RoundLog(list(SITES)))
    return model(run, 1, candidate.result.model)


def test_fewer_steps_than_the_file_says_do_not_multiply_a_change_under_fednova() -> None:
    honest = fednova(None, dict.fromkeys(SITES, 5))
    assert np.array_equal(fednova(None, {"a": 5, "b": 1, "c": 5}), honest)
    two, one = fednova(60.0, {"a": 5, "b": 2, "c": 5}), fednova(60.0, {"a": 5, "b": 1, "c": 5})
    assert np.array_equal(one, two) and not np.array_equal(one, honest), "of 5 steps under a time limit, 2 count"


def test_sampling_by_tokens_takes_the_registered_ones_not_the_claimed() -> None:
    run = start(memory())
    setting = changed(federation(), rounds={"count": 99, "quorum": 1, "sites_per_round": 1, "sampling": "tokens"})
    make_round(run, setting, 1, **{TOKENS: 1e15})

    def drawn(tokens: int | None) -> int:
        sites = [{**s.model_dump(exclude_none=True), "data_tokens": tokens} for s in setting.sites]
        asked = changed(setting, sites=sites)
        return sum(sampled_members(run, asked, t) == [EVIL] for t in range(2, 99))

    assert 15 < drawn(1000) < 55
    assert 15 < drawn(None) < 55, "nor without"
