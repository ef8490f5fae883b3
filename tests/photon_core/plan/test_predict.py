"""The plan: arithmetic on declared hardware and links, and the demo's measured rounds."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from photon_core.model.cost import flops_per_token
from photon_core.model.shapes import moment_shapes, parameter_count
from photon_core.plan.costs import update_bytes
from photon_core.plan.measured import measure
from photon_core.plan.predict import compared, predict
from photon_core.plan.sweep import best, sweep
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.sections.aggregation import Aggregation
from schemas.sections.model import Model
from schemas.view import view_of
from tests.federations import sample, site

RECORDED = Path(__file__).with_name("demo_rounds.json")
TOLERANCE = 0.25


def federation(**changes: Any) -> Federation:
    fast = {"hardware": {"devices": 8, "tflops": 1000, "memory_gb": 80}, "link": {"up": 1, "down": 8}}
    slow = {"hardware": {"devices": 2, "tflops": 1000, "memory_gb": 80}, "link": {"up": 0.5}}
    plan: dict[str, Any] = {
        "model": {"preset": "1.3B"},
        "rounds": {"count": 10},
        "local": {"steps": 100, "batch_size": 64},
        "sites": [site("fast", **fast), site("slow", **slow)],
    }
    return sample(recipe=None, **plan | changes)


def test_flops_of_gpt2_small_by_hand() -> None:
    """6 x 124.3 M parameters that are multiplied with (GPT-2's 124.4 M less its 0.8 M positions, plus no head)."""
    model = Model(n_layers=12, d_model=768, n_heads=12, vocab_size=50257, max_seq_len=1024)
    assert flops_per_token(model) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_declared_hardware_and_links() -> None:
    fed = federation()
    plan = predict(fed)
    fast, slow = plan.sites
    flops = flops_per_token(fed.model) * 64 * 2048
    assert fast.step == pytest.approx(flops / (8 * 1000e12 * 0.4))
    assert slow.step == pytest.approx(4 * (fast.step or 0))
    size = 4 * parameter_count(fed.model)
    assert fast.download == pytest.approx(size / 1e9) and fast.upload == pytest.approx(size * 8 / 1e9)
    assert slow.download == slow.upload == pytest.approx(size * 8 / 0.5e9)
    assert plan.bandwidth == 0.5e9 / 8
    assert plan.sites_seconds == slow.seconds == pytest.approx(2 + 100 * (slow.step or 0) + 2 * (slow.upload or 0))
    assert plan.run_bytes == 10 * 2 * 2 * size
    ring = plan.topology_seconds("ring all-reduce", data_parallel=True)
    assert ring == pytest.approx(1000 * ((slow.step or 0) + 2 * size * 1 / 2 / (0.5e9 / 8)))
    assert plan.data_parallel_seconds == ring  # with two sites it ties with all-reduce
    assert plan.topology_bytes("ring all-reduce", data_parallel=True) == 100 * plan.topology_bytes(
        "ring all-reduce"
    )


def test_memory_decides_on_the_micro_batch_and_on_fsdp() -> None:
    def planned(micro_batch: Any = "auto", shared: float | None = None, **hardware: Any) -> Any:
        local = {"steps": 100, "batch_size": 64, "micro_batch": micro_batch, "memory_gb": shared}
        return predict(federation(local=local, sites=[site("a", hardware={"tflops": 100, **hardware})])).sites[0]

    roomy, tight, sharded, none = (
        planned(memory_gb=2000),
        planned(memory_gb=60),
        planned(memory_gb=16, devices=8),
        planned(memory_gb=4),
    )
    assert (roomy.micro_batch, roomy.shards, roomy.fits) == (64, 1, True)
    assert 1 <= tight.micro_batch < 64 and tight.memory.total <= 0.9 * 60e9
    assert sharded.shards == 8 and sharded.fits
    assert (none.micro_batch, none.fits) == (0, False)
    assert planned().fits is None
    assert planned(shared=60, memory_gb=2000).micro_batch == tight.micro_batch, "a device that others use, too"
    for given, used in ((None, 64), (32, 32), (tight.micro_batch, tight.micro_batch)):
        fixed = planned(given, memory_gb=60)
        assert (fixed.micro_batch, fixed.fits) == (used, used == tight.micro_batch), "training takes it as it is"
    assert planned(32, memory_gb=4).micro_batch == 0
    assert planned(None, devices=7).micro_batch == 10, "64 sequences are 9 for each of 7 devices, and 1 more"


def test_sites_own_budgets_codec_and_pauses_count() -> None:
    fed = federation(update={"codec": "int8", "model_dtype": "bfloat16"})
    count = parameter_count(fed.model)
    assert update_bytes(fed) == pytest.approx(count * (1 + 4 / 256), rel=1e-3)
    assert predict(fed).download_bytes == 2 * count
    local = {"steps": 100, "batch_size": 64, "optimizer_state": "average"}
    averaged = federation(local=local, update={"moments_dtype": "bfloat16"})
    assert (update_bytes(averaged), predict(averaged).download_bytes) == ((4 + 2 * 2) * count, (4 + 2 * 2) * count)
    whole = predict(fed).sites[1].train or 0
    slow = view_of(fed, "slow").section

    def trained(**keys: Any) -> Any:
        changed = slow.model_copy(update=keys)
        return predict(fed.model_copy(update={"sites": [view_of(fed, "fast").section, changed]}))

    assert trained(steps=50).sites[1].train == pytest.approx(whole / 2)
    assert trained(time_limit=7.0).sites[1].train == 7
    assert [site.name for site in trained(paused=True).sites] == ["fast"]
    assert trained(micro_batch=4).sites[1].micro_batch == 4


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_averaged_moments_travel_too(name: str) -> None:
    fed = federation(update={"codec": "int8"})
    optimizer = fed.local.optimizer.model_copy(update={"name": name})
    local = fed.local.model_copy(update={"optimizer": optimizer, "optimizer_state": "average"})
    moments = 4 * sum(map(prod, moment_shapes(fed.model, name).values()))
    more, less = predict(fed.model_copy(update={"local": local})), predict(fed)
    assert more.upload_bytes - less.upload_bytes == more.download_bytes - less.download_bytes == moments
    assert more.run_bytes > less.run_bytes


def test_regions_are_read_twice_beside_their_means() -> None:
    """40 sites by 3 regions: 40 U for the means, 40 U + 3 x 3 M for the cosines, 3 M at the root."""
    names = [f"s{n}" for n in range(40)]
    hardware: dict[str, Any] = {"hardware": {"tflops": 1000}, "link": {"up": 1}}
    sites = [site(name, **hardware) for name in names]
    flat = federation(sites=sites, update={"codec": "int8"})
    tree = federation(sites=sites, update={"codec": "int8"}, aggregation={"tree_above": 32, "fan_out": 16})
    size, sent = 4.0 * parameter_count(flat.model), update_bytes(flat)
    assert predict(flat).regions == 0 and predict(flat).aggregate == pytest.approx(40 * sent / 0.5e9)
    assert predict(tree).regions == 3
    assert predict(tree).aggregate == pytest.approx((80 * sent + 12 * size) / 0.5e9)
    fewer = tree.model_copy(update={"rounds": tree.rounds.model_copy(update={"sites_per_round": 32})})
    assert predict(fewer).regions == 0


def test_a_measured_aggregation_is_scaled_by_what_is_read() -> None:
    fed, rounds = recorded()
    once = predict(fed, measure(fed, rounds)).aggregate
    by_regions = fed.model_copy(update={"aggregation": Aggregation(tree_above=2, fan_out=2)})
    assert predict(by_regions, measure(fed, rounds)).aggregate == pytest.approx(3.5 * once, rel=0.01)  # 2 + 6 / 4
    as_such = [m.model_copy(update={"partials": {"1": "", "2": ""}}) for m in rounds]
    assert predict(by_regions, measure(fed, as_such)).aggregate == pytest.approx(once, rel=0.01)


def test_what_is_not_declared_is_not_guessed() -> None:
    plan = predict(federation(sites=[site("a")]))
    assert plan.round_seconds is plan.run_seconds is plan.bandwidth is plan.data_parallel_seconds is None
    assert plan.run_bytes > 0 and plan.sites[0].memory.total > 0
    assert best(sweep(federation(sites=[site("a")]))) is None


def test_best_is_the_fewest_steps_of_which_training_takes_nearly_all() -> None:
    fed = federation(rounds={"count": 100})
    predictions = sweep(fed)
    advised = best(predictions)
    assert advised is not None
    share = {p.steps: (p.local_seconds or 0) / (p.round_seconds or 1) for p in predictions}
    assert share[advised.steps] >= 0.95
    assert all(share[p.steps] < 0.95 for p in predictions if p.steps < advised.steps)
    assert {p.steps * p.rounds for p in predictions} == {10_000}
    slower = [s.model_copy(update={"link": s.link.model_copy(update={"up": 0.05})}) for s in fed.sites if s.link]
    over_slow_links = best(sweep(fed.model_copy(update={"sites": slower})))
    assert over_slow_links is not None and over_slow_links.steps > advised.steps


def recorded() -> tuple[Federation, list[RoundManifest]]:
    data = json.loads(RECORDED.read_text("utf-8"))
    return Federation.model_validate(data["federation"]), [RoundManifest.model_validate(r) for r in data["rounds"]]


def test_a_demos_rounds_are_predicted_from_those_before_within_a_quarter() -> None:
    """Rounds of a real photon demo (python -m benchmarks.plan --record), two of them to calibrate on."""
    fed, rounds = recorded()
    found = [(t, expected, seconds) for t, expected, seconds in compared(fed, rounds) if t >= 3]
    assert len(found) >= 3
    for t, expected, seconds in found:
        assert expected == pytest.approx(seconds, rel=TOLERANCE), f"round {t}"


def test_calibration_knows_what_changes_with_the_file() -> None:
    fed, rounds = recorded()
    measured = measure(fed, rounds)
    assert measured is not None and measured.rounds == 5
    assert 1 < measured.concurrency < 4.1  # four sites on two cores
    once, twice = predict(fed, measured), predict(fed, measured, steps=2 * fed.local.steps)
    assert (twice.sites_seconds or 0) == pytest.approx(2 * (once.sites_seconds or 0), rel=0.1)
    assert twice.rounds == once.rounds / 2 and twice.aggregate == once.aggregate
    sent = [update.bytes for manifest in rounds for update in manifest.updates.values()]
    assert all(count == pytest.approx(update_bytes(fed), rel=0.01) for count in sent)  # headers are a small part
    assert measure(fed, rounds[:1]) is None  # round 0 took nobody's time


def test_the_window_forgets_old_rounds() -> None:
    fed, rounds = recorded()
    slow = [r.model_copy(update={"seconds": {"sites": 9999.0}}) for r in rounds[1:2]]
    assert measure(fed, [*slow, *rounds[1:]]) == measure(fed, rounds)
