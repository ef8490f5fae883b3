"""Which texts a site of benchmarks.worldlm has."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.worldlm_texts import REGIONS, Kind, deal, found, owners, shares, streams

KINDS = [Kind(), Kind(iid=True), Kind(swap=0.5), Kind(swap=1.0), Kind(noise=(0.5, 1.0))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_site_has_one_site_of_text_and_every_domain_the_same_share(kind: Kind) -> None:
    given = shares(REGIONS, kind)
    assert list(given) == [site for sites in REGIONS.values() for site in sites]
    for site in given:
        assert sum(given[site].values()) == pytest.approx(1)
        assert sum(owners(given, site).values()) == pytest.approx(1)


def test_novels_and_us_code_are_swapped() -> None:
    assert shares(REGIONS, Kind(swap=0.5))["novels"] == {"novels": 0.5, "us_code": 0.5}
    assert shares(REGIONS, Kind(swap=0.5))["us_code"] == {"us_code": 0.5, "novels": 0.5}
    whole = shares(REGIONS, Kind(swap=1.0))
    assert whole.pop("novels") == {"us_code": 1.0} and whole.pop("us_code") == {"novels": 1.0}
    assert whole == {site: {site: 1.0} for site in whole}


def test_kinds_have_names_of_their_settings() -> None:
    assert [kind.name for kind in KINDS] == ["natural", "iid", "swap 0.5", "swap 1", "noise 0.5 1"]
    assert [kind.text.name for kind in KINDS][-1] == "natural"


@pytest.mark.parametrize("parts", [{"a": 0.5, "b": 0.5}, dict.fromkeys("abcdef", 1 / 6), {"a": 1.0}])
def test_every_piece_is_dealt_once(parts: dict[str, float]) -> None:
    pieces = [str(i) for i in range(100)]
    dealt = deal(pieces, parts)
    assert Counter(piece for mine in dealt.values() for piece in mine) == Counter(pieces)
    assert all(len(mine) == pytest.approx(100 * parts[site], abs=1) for site, mine in dealt.items())
    assert dealt == deal(pieces, parts)


def test_streams_of_swapped_sites_hold_both_domains(tmp_path: Path) -> None:
    for domain in ("novels", "us_code"):
        (tmp_path / domain).mkdir()
        with gzip.open(tmp_path / domain / "train.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": f"{domain} {i} " * 900}) + "\n" for i in range(10))
    given = {site: shares(REGIONS, Kind(swap=0.5))[site] for site in ("novels", "us_code")}
    made = streams(tmp_path, given, tmp_path / "dealt")
    assert [(one["name"], one["proportion"]) for one in made["novels"]] == [("novels", 0.5), ("us_code", 0.5)]
    lines = [Path(one["source"]).read_text().splitlines() for one in made["novels"]]
    assert all(json.loads(line)["text"].split()[0] == "us_code" for line in lines[1])
    alone = {"novels": {"novels": 1.0}}
    assert streams(tmp_path, alone, tmp_path)["novels"][0]["source"] == str(tmp_path / "novels/train.jsonl.gz")


def test_text_that_comes_with_python_replaces_missing_domains(tmp_path: Path) -> None:
    data, regions = found(tmp_path / "none", tmp_path / "python")
    assert data == tmp_path / "python" and [len(sites) for sites in regions.values()] == [3, 3]
    for sites in regions.values():
        for site in sites:
            documents = {}
            for part in ("train", "valid"):
                with gzip.open(data / site / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
                    documents[part] = {json.loads(line)["text"] for line in lines}
            assert len(documents["train"]) > 10 * len(documents["valid"]) > 0
            assert not documents["train"] & documents["valid"]
