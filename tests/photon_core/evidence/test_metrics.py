"""The register of metrics: everything about a metric is read from it, and no other file lists names."""

import ast
from collections.abc import Iterator
from math import exp
from pathlib import Path

import numpy as np
import pytest

from photon_core.aggregation.claims import believed, largest_loss
from photon_core.aggregation.engine.norms import Norms, Pairs
from photon_core.aggregation.metrics import aggregate_metrics
from photon_core.evidence.metrics import METRICS, REGISTER, By, How, Metric, find, perplexity, reported, show
from photon_core.evidence.metrics_table import PATH, TABLE, page, table
from photon_core.evidence.summary import columns, summary, whole
from photon_core.evidence.trackers import tracked
from schemas.manifests import RoundManifest, UpdateManifest, UpdateRef
from tests.federations import sample, site

ROOT = Path(__file__).parents[3]
SITES: tuple[By, ...] = ("training", "evaluation")
REGISTER_FILE = "photon_core/evidence/metrics.py"
OTHER_THINGS = {  # of the same names
    "photon_core/update/settings.py": "keys of the federation file",
    "photon_core/evidence/metrics_table.py": "kinds of means",
    "photon_core/report/tables.py": "heads of columns",
    "photon_core/report/node_rows.py": "heads of columns",
    "photon_cli/tables.py": "heads of columns",
    "photon_cli/evaluate.py": "heads of columns",
}


def test_every_name_is_found_and_has_one_meaning() -> None:
    assert len(REGISTER) == sum(map(len, METRICS.values()))
    for (by, head), metric in REGISTER.items():
        assert metric.head == head and metric.meaning and "\n" not in metric.meaning and "|" not in metric.meaning
        whole, *parts = metric.name.replace("[", "").replace("]", "").split("/")
        if not parts or "[" in metric.name:
            assert find(whole, by) is metric
        if parts:
            assert find("/".join([whole, *("a.b-C" for _ in parts)]), by) is metric
            assert find("/".join([whole, *("" for _ in parts)]), by) is None
            assert find("/".join([whole, "..", *parts]), by) is None
        if metric.sites or metric.column or metric.watched or metric.fact or metric.required:
            assert find(head, by) is metric, "these are of the whole, not of its streams or sites"
        same = [other for (_, name), other in REGISTER.items() if name == head]
        assert {(one.unit, one.bound, one.form) for one in same} == {(metric.unit, metric.bound, metric.form)}
    assert find("nothing") is None and find("loss", "training") is None and find("loss/a", "training")


def test_metrics_are_combined_as_they_always_were() -> None:
    """Golden: stored rounds of all versions hold numbers made by these rules."""
    training = {metric.name: (metric.nodes, metric.sites) for metric in reported("training")}
    means = dict.fromkeys(["train_loss", "gradient_norm", "activation_norm", "mfu"], ("tokens", "weights"))
    largest = dict.fromkeys(("micro_batch", "resumed_at_step", "state_lost", "stream_restarted"), ("max", ""))
    alone = ["valid_loss[/<stream>]", "valid_tokens[/<stream>]", "seconds", "delta_norm", "key_delta_norm",
             "unclipped_norm", "nodes", "data_tokens"]  # fmt: skip
    assert training == {
        **means, **largest, **dict.fromkeys(alone, ("", "")), "first_loss": ("tokens", ""),
        "last_loss": ("tokens", ""), "loss/<stream>": ("samples", ""), "samples[/<stream>]": ("sum", ""),
        "tokens_per_second": ("sum", "sum"), "devices": ("sum", ""),
    }  # fmt: skip
    losses = {"train_loss", "first_loss", "last_loss", "loss/<stream>", "valid_loss[/<stream>]", "loss[/<stream>]"}
    bounds = {(metric.name, metric.bound) for by in SITES for metric in reported(by) if metric.bound}
    tokens = {("valid_tokens[/<stream>]", "tokens"), ("tokens[/<stream>]", "tokens")}
    assert bounds == {(name, "loss") for name in losses} | tokens
    required = {by: [metric.head for metric in reported(by) if metric.required] for by in SITES}
    assert required == {"training": ["train_loss"], "evaluation": ["loss", "perplexity", "tokens"]}
    assert [metric.name for metric in reported("coordinator") if metric.watched] == ["step_norm", "model_norm"]
    assert perplexity(2.0) == exp(2.0) and perplexity(1e300) == exp(700)


def test_the_page_explains_every_metric() -> None:
    assert TABLE.search(PATH.read_text("utf-8")), "docs/concepts.md has no table of metrics"
    assert page() == PATH.read_text("utf-8"), "run `python -m photon_core.evidence.metrics_table`"
    assert table().count("\n") == len(REGISTER) + 2


def update(site: str, **metrics: float) -> UpdateManifest:
    return UpdateManifest(
        run="r", round=1, site=site, attempt=1, base_sha256="", codec="float32", files=[], tokens=1, steps=1,
        metrics={"train_loss": 1.0, **metrics}, data_sha256="", versions={}, previous_sha256="",
    )  # fmt: skip


def round_of(metrics: dict[str, float], **own: dict[str, float]) -> RoundManifest:
    updates = {
        name: UpdateRef(attempt=1, sha256="0", tokens=640, weight=0.5, bytes=77, steps=5, metrics=said)
        for name, said in own.items()
    }
    return RoundManifest(
        run="r", round=1, model_sha256="0", model=[], sampled=sorted(own), updates=updates, metrics=metrics,
        federation_sha256="0", seconds={"sites": 1.5}, created="", versions={}, total_tokens=9, global_step=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "expected"), [("weights", 2.5), ("sum", 5.0), ("max", 4.0), ("mean", 2.5), ("", None)]
)
def test_a_metric_more_is_one_entry(how: How, expected: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Metric("noise", "nats", "how noisy", sites=how, column="noise scale", form=".1f")
    monkeypatch.setitem(REGISTER, ("training", new.head), new)
    federation = sample(sites=[site("a"), site("b")])
    updates = {"a": update("a", noise=1.0), "b": update("b", noise=4.0)}
    found = aggregate_metrics(federation, {"a": 0.5, "b": 0.5}, updates, {})
    assert found.get("noise") == expected
    manifest = round_of(found, **{name: one.metrics for name, one in updates.items()})
    assert [row["noise scale"] for row in summary(manifest)] == [1.0, 4.0]
    assert whole(manifest)["noise scale"] == expected and new in [metric for _, metric in columns()]
    assert tracked(manifest)["sites/b/noise"] == 4.0 and tracked(manifest).get("global/noise") == expected
    assert show("noise", 2.55) == "2.5" and "| `noise` | training | nats |" in table()


def test_a_score_more_is_bounded_by_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Metric("byte_loss", "nats", "by byte", bound="loss")
    monkeypatch.setitem(REGISTER, ("evaluation", new.head), new)
    federation = sample(sites=[site("a"), site("b")])
    scores = {"loss": 1.0, "perplexity": 9.0, "tokens": 2.0}
    found = believed(federation, {"a": {**scores, "byte_loss": 1e9, "other": 1.0}, "b": scores})
    most = largest_loss(federation)
    assert found["a"] == {"loss": 1.0, "perplexity": exp(1.0), "tokens": 2.0, "byte_loss": most}
    assert found["b"].keys() == scores.keys()


def test_whatever_a_round_holds_is_registered() -> None:
    federation = sample(sites=[site("a", "news", "code"), site("b", "news")])
    streams = {"valid_loss/news": 1.0, "valid_tokens/news": 1.0, "valid_loss": 1.0, "valid_tokens": 1.0}
    updates = {
        name: update(name, tokens_per_second=1.0, gradient_norm=1.0, activation_norm=1.0, mfu=0.5, **streams)
        for name in ("a", "b")
    }
    scores = {"loss": 1.0, "perplexity": 9.0, "tokens": 2.0, "loss/news": 1.0, "tokens/news": 1.0}
    pairs = Pairs(["a", "b"], 4)
    pairs.gram[:] = np.eye(2)
    found = aggregate_metrics(federation, {"a": 0.5, "b": 0.5}, updates, {"a": scores, "b": scores})
    found |= {**Norms(["a", "b"]).result(), **pairs.result()}
    strange = [
        name for name in found
        if not find(name, "round", "coordinator")
        and not any((metric := find(name, by)) and metric.sites for by in SITES)
    ]  # fmt: skip
    assert strange == [] and {"cosine_pair/a/b", "perplexity_after/news", "loss/news"} <= found.keys()


def test_trackers_get_what_a_round_counts() -> None:
    found = tracked(round_of({}, a={}, b={})).items()
    assert {name: value for name, value in found if name.startswith("global/")} == {
        "global/seconds/sites": 1.5, "global/total_tokens": 9.0, "global/global_step": 5.0,
        "global/bytes_sent": 154.0, "global/sites": 2.0, "global/left_out": 0.0,
    }  # fmt: skip
    back = round_of({}).model_copy(update={"to": 3})
    assert tracked(back)["global/rolled_back_to"] == 3.0


def name_tables(path: Path) -> Iterator[int]:
    """Lines of displays of constants that hold two metrics' names or more."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Dict):
            constant = all(isinstance(value, ast.Constant) for value in node.values)
            items = [key for key in node.keys if key is not None] if constant else []
        else:
            items = node.elts if isinstance(node, ast.Set | ast.List | ast.Tuple) else []
        texts = [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if sum(metric is not None and metric.fact is None for metric in map(find, texts)) > 1:
            yield node.lineno


def test_names_of_metrics_are_listed_in_one_place() -> None:
    folders = ("photon_core", "tasks", "flows", "photon_cli")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): lines for path in files if (lines := list(name_tables(path)))}
    assert found.keys() - {REGISTER_FILE} == OTHER_THINGS.keys(), found
