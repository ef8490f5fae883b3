"""Manifests and headers made of what a grammar gives, right and wrong in turn: each is read or refused by name.

The seed is fixed. `make fuzz` tries more of each, from a new seed."""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from photon_core.aggregation.candidate import Candidate
from photon_core.aggregation.round import aggregate_round
from photon_core.errors import CorruptFile
from photon_core.evidence.evaluations import evaluation
from photon_core.hashing import sha256_bytes
from photon_core.run.run import Run
from photon_core.run.start import site_start
from photon_core.store.store import Store
from schemas.federation import Federation
from tests.photon_core.hostile_cases import EVIL, HONEST
from tests.photon_core.hostile_updates import MODES, honest_update, make_run
from tests.photon_core.hostile_updates import settings as file_of

EXAMPLES = int(os.environ.get("PHOTON_FUZZ", "0"))
fuzz = partial(
    settings, derandomize=not EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
MODE = MODES["float32, flat, on a disk"]
SCORES = {"loss": 1.0, "perplexity": 2.7, "tokens": 10}

odd_texts = st.sampled_from(
    ["", "..", "/x", "[/x]", "\x1b[2J", "<!channel>", "plain", "int8:256", "topk:16:4", "BF16", "F32", "漢" * 900]
)
odd_numbers = st.sampled_from(
    [-1, 0, 1, 2**53, 2**53 + 1, 10**400, -(10**400), 1e308, -1e308, 1.5, math.inf, math.nan]
)
leaves = st.one_of(
    odd_texts, odd_numbers, st.text(max_size=8), st.none(), st.booleans(), st.integers(), st.floats()
)
keys = odd_texts | st.text(max_size=4)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of everything in a JSON value."""
    below = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [here, *(path for key in below for path in paths(value[key], (*here, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@st.composite
def mutants(draw: st.DrawFn, whole: Any) -> Any:
    """A right value with up to three places changed to whatever."""
    for _ in range(draw(st.integers(1, 3))):
        whole = changed(whole, draw(st.sampled_from(paths(whole))), draw(values))
    return whole


def written(value: Any) -> bytes:
    """JSON as a hostile site may write it: with NaN, numbers of any length, and lone surrogates."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


class Round:
    """Round 1 of a run with two honest sites, and what a hostile one puts beside them, time and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = Federation.model_validate(file_of(MODE, str(folder), 3))
        run = make_run(Store(str(folder)), self.federation, MODE)
        for site in HONEST:
            run.commit_update(honest_update(run, 1, site, MODE))
        self.manifest = honest_update(run, 1, EVIL, MODE).model_dump(mode="json")
        self.place = folder / run.site_dir(1, EVIL, 1)
        self.shard = (self.place / self.manifest["files"][0]["path"]).read_bytes()
        self.start = {"run": "run", "site": EVIL, "files": self.manifest["files"], "sha256": {}, "notes": []}

    def aggregated(self, manifest: bytes) -> Candidate:
        (self.place / "update.json").write_bytes(manifest)
        return aggregate_round(
            Run(Store(str(self.folder)), "run"), self.federation, 1, sorted((*HONEST, EVIL)), {}
        )

    def holds(self, manifest: bytes) -> None:
        """The round continues with both honest sites, and with the other or without it by name."""
        candidate = self.aggregated(manifest)
        assert set(candidate.updates) - {EVIL} == set(HONEST)
        assert set(candidate.left_out) == {EVIL} - set(candidate.updates)
        assert all(reason.isprintable() for reason in candidate.left_out.values())


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return Round(tmp_path_factory.mktemp("fuzz"))


def test_any_manifest_is_read_or_refused_by_name(opened: Round) -> None:
    @fuzz(max_examples=EXAMPLES or 120)
    @given(mutants(opened.manifest))
    def holds(manifest: Any) -> None:
        opened.holds(written(manifest))

    opened.holds(written(opened.manifest))
    holds()


def test_any_bytes_are_no_manifest(opened: Round) -> None:
    @fuzz(max_examples=EXAMPLES or 30)
    @given(st.binary(max_size=200) | values.map(written))
    def holds(data: bytes) -> None:
        assert EVIL in opened.aggregated(data).left_out

    holds()


def test_any_header_is_read_or_refused_by_name(opened: Round) -> None:
    length = int.from_bytes(opened.shard[:8], "little")
    header, data = json.loads(opened.shard[8 : 8 + length]), opened.shard[8 + length :]
    path = opened.place / opened.manifest["files"][0]["path"]

    @fuzz(max_examples=EXAMPLES or 120)
    @given(mutants(header), st.none() | st.integers(0, 2**64 - 1), st.integers(0, 40))
    def holds(header: Any, claimed: int | None, cut: int) -> None:
        body = written(header)
        size = len(body) if claimed is None else claimed
        whole = size.to_bytes(8, "little") + body + data[: len(data) - cut]
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
        entry = opened.manifest["files"][0] | {"sha256": sha256_bytes(whole), "blake3": "", "bytes": len(whole)}
        opened.holds(written(opened.manifest | {"files": [entry]}))

    holds()


def test_any_evaluation_and_start_is_read_or_refused(opened: Round) -> None:
    run = Run(Store(str(opened.folder)), "run")
    base = run.round(0)
    assert base
    score = opened.folder / run.round_dir(1) / f"sites/{EVIL}/evaluation-{base.model_sha256[:16]}.json"
    start = opened.folder / run.site_dir(0, EVIL, 1) / "start.json"
    start.parent.mkdir(parents=True)

    @fuzz(max_examples=EXAMPLES or 150)
    @given(mutants(SCORES) | values, mutants(opened.start) | values)
    def holds(scores: Any, first: Any) -> None:
        score.write_bytes(written(scores))
        start.write_bytes(written(first))
        for read in (lambda: evaluation(run, 1, EVIL, base.model), lambda: site_start(run, EVIL)):
            try:
                assert read()
            except CorruptFile as error:
                assert str(error).isprintable()

    holds()
