"""Texts of benchmarks.worldlm: which domains a site has, and its share of each domain's training texts."""

import gzip
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import say
from benchmarks.six_sites import texts

Regions = Mapping[str, tuple[str, ...]]  # region -> its sites, each named after its domain
Shares = dict[str, dict[str, float]]  # site -> domain -> share of the site's text

REGIONS: Regions = {
    "general": ("wikipedia_en", "novels", "gov_news"),
    "technical": ("us_code", "pmc_fulltext", "math_word_problems"),
}
PIECE = 4000  # characters: texts that several sites share are split into such pieces
HELD_OUT_EVERY = 15  # of the text that comes with Python, one document of this many is for validation


@dataclass(frozen=True)
class Kind:
    """How the texts are spread over the sites, and whether the first region adds noise.

    Args:
        iid: flag: every site has an equal share of every domain.
        swap: share of the text that two sites, one of each region, have from each other's domain.
        noise: noise_multiplier and clip_norm of the first region's sites.
    """

    iid: bool = False
    swap: float = 0.0
    noise: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """Name in rows and figures."""
        if self.noise:
            return f"noise {self.noise[0]:g} {self.noise[1]:g}"
        return "iid" if self.iid else f"swap {self.swap:g}" if self.swap else "natural"

    @property
    def text(self) -> "Kind":
        """The same texts without noise."""
        return Kind(self.iid, self.swap)


NATURAL = Kind()


def shares(regions: Regions, kind: Kind) -> Shares:
    """Every site's domains. Over all sites, each domain has the same share."""
    sites = [site for members in regions.values() for site in members]
    if kind.iid:
        return {site: dict.fromkeys(sites, 1 / len(sites)) for site in sites}
    found = {site: {site: 1.0} for site in sites}
    if kind.swap:
        first, second = swapped(regions)
        for mine, other in ((first, second), (second, first)):
            mixed = {mine: 1 - kind.swap, other: kind.swap}
            found[mine] = {domain: share for domain, share in mixed.items() if share}
    return found


def swapped(regions: Regions) -> tuple[str, str]:
    """The two sites that swap texts: the second of the first region, and the first of the second one."""
    first, second = list(regions.values())[:2]
    return first[1], second[0]


def owners(given: Shares, domain: str) -> dict[str, float]:
    """Site -> its part of a domain's texts; the parts sum to 1."""
    return {site: mine[domain] for site, mine in given.items() if domain in mine}


def deal(pieces: list[str], parts: Mapping[str, float]) -> dict[str, list[str]]:
    """Shuffle pieces and give each site its part: every piece to one site, in the same way each time."""
    import numpy as np

    order = np.random.default_rng(0).permutation(len(pieces))
    ends = [round(len(pieces) * end) for end in itertools.accumulate(parts.values())]
    starts = [0, *ends[:-1]]
    return {
        site: [pieces[i] for i in order[start:end]] for site, start, end in zip(parts, starts, ends, strict=True)
    }


def streams(data: Path, given: Shares, folder: Path, most: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Site -> section `streams` of the federation file. Writes the files that differ from those of `data`.

    Args:
        data: folder with <domain>/train.jsonl.gz.
        given: shares of the sites.
        folder: folder for the written files.
        most: largest number of documents of a domain; None for all.
    """
    source: dict[tuple[str, str], Path] = {}
    for domain in sorted({domain for mine in given.values() for domain in mine}):
        train, parts = data / domain / "train.jsonl.gz", owners(given, domain)
        if len(parts) == 1 and most is None:
            source |= {(site, domain): train for site in parts}
            continue
        for site, pieces in deal(_pieces(train, most), parts).items():
            path = source[site, domain] = folder / domain / f"{site}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), "utf-8")
    return {
        site: [
            {"name": domain, "source": str(source[site, domain]), "proportion": share}
            for domain, share in mine.items()
        ]
        for site, mine in given.items()
    }


def _pieces(train: Path, most: int | None) -> list[str]:
    some = itertools.islice(texts(train), most)
    pieces = (text[i : i + PIECE] for text in some for i in range(0, len(text), PIECE))
    return [piece for piece in pieces if piece.strip()]


def found(data: Path, folder: Path) -> tuple[Path, Regions]:
    """The folder of the domains and their regions: `data` if it has all domains, else text that comes with Python.

    Args:
        data: folder with <domain>/{train,valid}.jsonl.gz.
        folder: folder for the text that replaces them.
    """
    domains = [domain for members in REGIONS.values() for domain in members]
    if all((data / domain / f"{part}.jsonl.gz").is_file() for domain in domains for part in ("train", "valid")):
        return data, REGIONS
    say(f"{data} has not all domains: text that comes with Python replaces them")
    return folder, python_texts(folder)


def python_texts(folder: Path) -> Regions:
    """Write six kinds of text that come with Python, in the layout of the domains. Returns their regions."""
    from photon_cli.demo_world import TREE, write_texts

    write_texts(folder)
    for region, sites in TREE.items():
        for site in sites:
            with (folder / region / f"{site}.jsonl").open(encoding="utf-8") as lines:
                documents = list(lines)
            (folder / site).mkdir()
            for part, some in _parts(documents):
                with gzip.open(folder / site / f"{part}.jsonl.gz", "wt", encoding="utf-8") as file:
                    file.writelines(some)
    return TREE


def _parts(documents: list[str]) -> Iterator[tuple[str, list[str]]]:
    yield "valid", documents[::HELD_OUT_EVERY]
    yield "train", [document for i, document in enumerate(documents) if i % HELD_OUT_EVERY]
