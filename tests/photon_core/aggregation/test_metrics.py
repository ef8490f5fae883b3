"""A round's metrics: weighted as the parameters are, held-out losses by their tokens, domains across sites."""

from math import exp, isfinite, log

import pytest

from photon_core.aggregation.metrics import aggregate_metrics
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from tests.federations import sample, site


def federation() -> Federation:
    return sample(sites=[site("a", "news", "code"), site("b", "news")])


def update(site: str, **metrics: float) -> UpdateManifest:
    return UpdateManifest(
        run="r", round=1, site=site, attempt=1, base_sha256="", codec="float32", files=[], tokens=1, steps=1,
        metrics={"train_loss": 1.0, **metrics}, data_sha256="", versions={}, previous_sha256="",
    )  # fmt: skip


def test_means_and_sums() -> None:
    updates = {
        "a": update("a", gradient_norm=1.0, tokens_per_second=10.0, valid_loss=2.0, valid_tokens=30.0,
                    **{"valid_loss/news": 1.0, "valid_tokens/news": 10.0, "valid_loss/code": 2.5,
                       "valid_tokens/code": 20.0, "valid_loss/strange": 9.0, "valid_tokens/strange": 1.0}),
        "b": update("b", gradient_norm=5.0, tokens_per_second=5.0, mfu=0.4, valid_loss=4.0, valid_tokens=10.0),
    }  # fmt: skip
    evaluations = {
        "a": {"loss": 2.5, "perplexity": exp(2.5), "tokens": 40.0, "loss/news": 3.0, "tokens/news": 10.0,
              "loss/code": 7 / 3, "tokens/code": 30.0, "loss/strange": 9.0, "tokens/strange": 1.0},
        "b": {"loss": log(8), "perplexity": 8.0, "tokens": 30.0},
    }  # fmt: skip
    found = aggregate_metrics(federation(), {"a": 0.75, "b": 0.25}, updates, evaluations)
    assert found["gradient_norm"] == pytest.approx(2.0)
    assert found["mfu"] == pytest.approx(0.4), "of the site that reports it"
    assert found["tokens_per_second"] == 15.0
    assert found["loss_before"] == pytest.approx(2.5) and found["perplexity_before"] == pytest.approx(exp(2.5))
    assert found["loss_before/news"] == pytest.approx((10 * 1.0 + 10 * 4.0) / 20), "of both sites' own models"
    assert found["perplexity_before/code"] == pytest.approx(exp(2.5))
    assert found["loss"] == pytest.approx((40 * 2.5 + 30 * log(8)) / 70)
    assert found["loss/news"] == pytest.approx((10 * 3.0 + 30 * log(8)) / 40), "of both sites"
    assert found["perplexity/code"] == pytest.approx(exp(7 / 3))
    assert not [name for name in found if "strange" in name]


def test_before_and_after_are_of_the_same_sites() -> None:
    """b trained and its evaluation is missing, c was not sampled, d does not evaluate its own model."""
    sites = sample(sites=[site(name) for name in "abcd"])
    updates = {
        "a": update("a", valid_loss=2.0, valid_tokens=30.0), "b": update("b", valid_loss=4.0, valid_tokens=10.0),
        "d": update("d"),
    }  # fmt: skip
    evaluations = {name: {"loss": loss, "tokens": 30.0} for name, loss in (("a", 2.5), ("c", 7.0), ("d", 4.0))}
    found = aggregate_metrics(sites, dict.fromkeys("abd", 1 / 3), updates, evaluations)
    assert (found["loss_before"], found["loss_after"]) == (2.0, 2.5)
    assert found["loss"] == pytest.approx((2.5 + 7.0 + 4.0) / 3)
    assert found["perplexity_after"] == pytest.approx(exp(2.5))


def test_what_a_site_tells_cannot_make_a_metric_infinite_or_a_name_without_bound() -> None:
    wild = {"gradient_norm": 1e45, "tokens_per_second": 1e45, "valid_loss": 1e45, "valid_tokens": 1e45}
    more = {f"loss/{number}": 1.0 for number in range(900)}
    updates = {site: update(site, **wild, **more) for site in ("a", "b")}
    evaluations = {site: {"loss": 1e15, "perplexity": 1.0, "tokens": 1e15} for site in updates}
    found = aggregate_metrics(federation(), {"a": 0.5, "b": 0.5}, updates, evaluations)
    assert all(map(isfinite, found.values()))
    assert len(found) == 15, found.keys()
