"""One page that needs nothing else, whatever the size of the run, and whatever untrusted text it contains."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from photon_core.evidence.record import Record, read_record, thin, traffic
from photon_core.report import write
from photon_core.report.page import TIMELINES, notes, render
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from schemas.manifests import TensorEntry

SIZES = [(0, 4), (1, 1), (7, 4), (12, 64), (1000, 8)]


class Elements(HTMLParser):
    """Every element of a page, and every id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src") or (value and "url(" in value):
                self.references.append(value or "")


@pytest.mark.parametrize(("rounds", "sites"), SIZES)
def test_a_run_of_any_size_is_one_small_page_that_loads_nothing(
    make_record: Callable[..., Record], rounds: int, sites: int
):
    page = render(make_record(rounds, sites))
    elements = Elements(page)
    assert len(page.encode()) < 3e6
    assert "script" not in elements.names and "http-equiv" in page
    assert all(reference.startswith(("#", "data:")) or "url(#" in reference for reference in elements.references)
    assert len(elements.ids) == len(set(elements.ids)), "ids are unique on the page, between figures too"
    assert page.count("<svg") == page.count("</svg>") == page.count('role="img"')
    assert (page.count("<svg") >= 8) == (rounds > 0)


def test_noise_is_shown_with_its_strength_and_as_no_guarantee(make_record: Callable[..., Record]):
    made = make_record(1, 3)
    assert "noise" not in "".join(notes(made))
    found = {name: update.model_copy(update={"clip_norm": 0.25}) for name, update in made.updates.items()}
    found["site-00"] = found["site-00"].model_copy(update={"noise_multiplier": 0.5})
    found["site-02"] = found["site-02"].model_copy(update={"noise": 0.0125})
    last = made.rounds[-1].model_copy(update={"server": {"noise_multiplier": 2.0}})
    assert notes(replace(made, updates=found, rounds=[*made.rounds[:-1], last])) == [
        "Noise on each site's change: noise_multiplier 0.5 at clip_norm 0.25: noise, not a guarantee.",
        "Noise on the mean of the changes: noise_multiplier 2 at clip_norm 0.25: noise, not a guarantee.",
        "Noise in the change of site-02: standard deviation 0.0125 of each parameter: noise, not a guarantee.",
    ]


@pytest.mark.slow
def test_200_rounds_of_16_sites_in_a_store_are_a_page_under_3_megabytes(
    make_record: Callable[..., Record], tmp_path: Path
):
    made, run = make_record(200, 16), Run(Store(str(tmp_path)), "made")
    assert made.run_manifest is not None
    run.create_run(made.run_manifest)
    for t, manifest in enumerate(made.rounds):
        linked = {
            "model_sha256": model_sha256(manifest.model),
            "previous_sha256": run.round_sha256(t - 1) if t else "",
        }
        run.commit_round(manifest.model_copy(update=linked))
    record = read_record(run, 200)
    assert len(record.trained) == 200 and len(record.sites) == 16
    for timelines in (TIMELINES, write.TIMELINES):
        assert 3e5 < len(render(record, timelines).encode()) < 3e6


def test_text_in_figures_is_text_and_every_figure_says_what_it_shows(make_record: Callable[..., Record]):
    page = render(make_record(7, 4))
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert all(re.search(r'aria-label="[^"]{40,}"', figure) for figure in figures)
    assert all("site-01" in figure for figure in figures if 'aria-label="Cosine' in figure)
    assert "site-03 2.3" in page, "the norms are in the words, too"


def test_what_strangers_write_stays_text(make_record: Callable[..., Record]):
    page = render(make_record(3, 4))
    assert "&lt;script&gt;alert(" in page and "<script>alert" not in page
    assert "{{ 7 * 7 }}" in page


def test_it_says_what_went_wrong(make_record: Callable[..., Record]):
    page = render(make_record(6, 4))
    assert "Round 6 excluded site-03" in page
    assert "local training was started 2 times" in page
    assert "2.6.0 at site-00" in page, "a site's other versions"
    whole = render(make_record(1, 4))
    assert "Nothing: every sampled site" in whole


def test_a_run_that_is_not_born_has_a_page(make_record: Callable[..., Record]):
    assert "Nothing has happened yet" in render(make_record(0, 2, run_manifest=None, rounds=[], updates={}))


def test_manifests_without_spans_have_curves_and_no_timeline(make_record: Callable[..., Record]):
    record = make_record(3, 3)
    early = [manifest.model_copy(update={"spans": {}, "opened": ""}) for manifest in record.rounds]
    page = render(make_record(3, 3, rounds=early))
    assert 'id="perplexity"' in page and 'id="seconds"' in page and 'id="round-3"' not in page


def test_domains_that_are_not_the_sites_have_curves_of_their_own(make_record: Callable[..., Record]):
    plain = make_record(3, 2)
    assert plain.run_manifest is not None and 'id="domains"' not in render(plain)
    sites = [{"name": site, "streams": [{"name": "news"}, {"name": "code"}]} for site in plain.sites]
    birth = plain.run_manifest.model_copy(update={"federation": plain.federation | {"sites": sites}})
    domains = {"perplexity/news": 9.5, "perplexity/code": 3.25}
    told = [m.model_copy(update={"metrics": m.metrics | (domains if m.round else {})}) for m in plain.rounds]
    page = render(make_record(3, 2, run_manifest=birth, rounds=told))
    assert 'id="domains"' in page and "By domain: news 9.5, code 3.25" in page


def test_traffic_is_the_rings(make_record: Callable[..., Record]):
    # 2 rounds of 10 steps, 4 sites, 1000 parameters: each sends 2 * 3/4 * 4000 bytes a step to its neighbour
    ours, theirs = traffic(make_record(2, 4))[-1]
    assert theirs == 2 * 10 * 4 * (2 * 3 / 4 * 4000)
    assert ours == 2 * 4 * (4096 + 3000)


def test_traffic_is_what_the_sites_fetch(make_record: Callable[..., Record]):
    """The rounded model where there is one, and averaged moments; from round 0 they fetch its model alone."""
    record = make_record(2, 4)
    whole = record.rounds[0].model[0]
    rounded, moments = whole.model_copy(update={"bytes": 2048}), whole.model_copy(update={"bytes": 8192})
    record.rounds[1] = record.rounds[1].model_copy(update={"download": [rounded], "moments": [moments]})
    assert traffic(record)[-1][0] == 4 * (4096 + 3000) + 4 * (2048 + 8192 + 3000)


def test_a_tensor_that_several_files_share_is_counted_once(make_record: Callable[..., Record]):
    record = make_record(1, 2)
    parts = [TensorEntry(dtype="F32", shape=(10, 100), rows=rows) for rows in ((0, 6), (6, 10))]
    files = [record.rounds[0].model[0].model_copy(update={"tensors": {"w": part}}) for part in parts]
    record.rounds[0] = record.rounds[0].model_copy(update={"model": files})
    assert record.parameters == 1000


def test_thin_keeps_the_ends():
    assert thin(range(1000), 4) == [0, 333, 666, 999]
    assert thin([1, 2], 5) == [1, 2] and thin([1, 2, 3], 1) == [3]
