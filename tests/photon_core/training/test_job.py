"""A job's key: what a site's training depends on counts, and nothing else of the federation file does."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.training.job import LocalJob
from photon_core.update.settings import UNCOUNTED, UNCOUNTED_OF_SITE, work_sha256
from schemas.federation import Federation
from schemas.sections.base import Section
from schemas.sections.worldlm import WorldLM
from schemas.view import view_of
from tests.photon_core.training.conftest import make_federation

WITHOUT_EFFECT = {
    *("preset", "recipe", "store", "trackers", "federations", "parent"),
    *("storage.", "server.", "deploy.", "sites.beta."),
    *("rounds.sites_per_round", "rounds.quorum", "rounds.deadline", "rounds.grace", "rounds.evaluation_deadline"),
    *("rounds.report_every", "local.micro_batch", "local.memory_gb", "local.checkpoint_steps", "local.loggers"),
    *("aggregation.tree_above", "aggregation.fan_out", "aggregation.memory_mib", "aggregation.connections"),
    *("data.min_train_tokens", "data.max_eot_share"),
    *("sites.alpha.paused", "sites.alpha.pool", "sites.alpha.pool_type", "sites.alpha.job_variables"),
    *("sites.alpha.state_dir", "sites.alpha.micro_batch", "sites.alpha.link", "sites.alpha.data_tokens"),
}


def changes(section: Section, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a section and of those in it, and the section with another value there."""
    for name, value in section:
        if isinstance(value, Section):
            for path, other in changes(value, f"{where}{name}."):
                yield path, section.model_copy(update={name: other})
        elif name == "sites":
            for i, site in enumerate(value):
                for path, other in changes(site, f"sites.{site.name}."):
                    yield path, section.model_copy(update={name: [*value[:i], other, *value[i + 1 :]]})
        elif where + name != "sites.alpha.name":
            yield where + name, section.model_copy(update={name: other_than(value)})


def other_than(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return 1 if value is None else value[::-1] if isinstance(value, tuple) else f"{value}-"


def job(federation: Federation) -> LocalJob:
    return LocalJob(view_of(federation, "alpha"), 1, 1, [], "0", 0)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_key_of_the_file_counts_but_those_without_effect(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, ("alpha", "beta"))
    key = job(federation).key
    found = {path: job(other).key == key for path, other in changes(federation)}
    expected = {
        path: path in WITHOUT_EFFECT or any(path.startswith(name) for name in WITHOUT_EFFECT if name[-1] == ".")
        for path in found
    }
    assert len(found) > 100 and found == expected


def test_sites_come_and_go_without_effect(tmp_path: Path) -> None:
    key = job(make_federation(tmp_path, ("alpha", "beta"))).key
    assert job(make_federation(tmp_path, ("alpha",))).key == key
    assert job(make_federation(tmp_path, ("beta", "gamma", "alpha"))).key == key


def test_the_end_of_the_schedule_counts_where_there_is_one(tmp_path: Path) -> None:
    def longer(**schedule: Any) -> bool:
        federation = make_federation(tmp_path, schedule=schedule)
        rounds = federation.rounds.model_copy(update={"count": 4})
        return job(federation).key == job(federation.model_copy(update={"rounds": rounds})).key

    assert not longer()
    assert longer(total_steps=15) and longer(name="constant")
    by_count, by_steps = make_federation(tmp_path), make_federation(tmp_path, schedule={"total_steps": 15})
    assert by_count.schedule_steps == 15
    plain = by_count.local.model_copy(update={"schedule": by_steps.local.schedule})
    assert job(by_count.model_copy(update={"local": plain})).key == job(by_steps).key


@pytest.mark.parametrize(("key", "value", "counts"), [
    ("key_layers", 1, True), ("attention", "dot", True), ("temperature", 2.0, True), ("own_row", False, True),
    ("rounds", 2, False), ("weights", "tokens", False), ("residuals", "off", False),
])  # fmt: skip
def test_of_key_layers_all_counts_that_the_site_does(tmp_path: Path, key: str, value: Any, counts: bool) -> None:
    federation = make_federation(tmp_path)
    before, after = (
        federation.model_copy(update={"worldlm": WorldLM.model_validate(values)}) for values in ({}, {key: value})
    )
    assert (job(before).key != job(after).key) == counts
    assert (work_sha256(before) != work_sha256(after)) == counts
    assert len({job(federation).key, job(before).key}) == 2


def test_the_job_of_a_file_without_key_layers_is_what_it_was(tmp_path: Path) -> None:
    """Computed from the file's keys as they were before there were key layers and trees."""
    federation = make_federation(tmp_path)
    values = federation.model_dump(mode="json", exclude=UNCOUNTED)
    assert not {"worldlm", "federations", "parent"} & values.keys()
    site = federation.sites[0].model_dump(mode="json", exclude=UNCOUNTED_OF_SITE)
    assert job(federation).key == sha256_bytes(canonical_json([values, site, 15, 1, "0", 0, None]))


def test_the_round_and_where_it_starts_count(tmp_path: Path) -> None:
    first = job(make_federation(tmp_path))
    others: list[dict[str, Any]] = [{"round": 2}, {"base_sha256": "1"}, {"global_step": 5}, {"resume": (1, 1)}]
    others.append({"entry_sha256": "2"})
    keys = {first.key, *(dataclasses.replace(first, **other).key for other in others)}
    assert len(keys) == 6
    assert (
        dataclasses.replace(first, threads=2, base_files=["elsewhere"], announce=True, attempt=2).key == first.key
    )
