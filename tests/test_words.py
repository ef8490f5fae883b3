"""The words of README, docs and CONTRIBUTING: plain technical English, and the terms that users search for."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "examples/*.yaml", "Makefile"]
# What must not be written -> what to write instead. To hold for code, too, add its files to PAGES.
AVOID = {
    r"told|tells?": "reported, notified, logs, raises",
    r"says? so": "reports it",
    r"(go|goes|going|gone|went) on": "continues, proceeds; resumes (from a checkpoint)",
    r"litter": "unreferenced (orphaned) files",
    r"reckon(s|ed)?|worked out": "computed, tracked, derived",
    r"anew|afresh|done again": "regenerated, reset, starts over, retried",
    r"tr(y|ies|ied) again": "retry, retries, retried",
    r"growing pauses": "backoff",
    r"there already": "exists, available",
    r"(is|are|was|were) wanted|asked for": "expected, requested, sampled",
    r"stands|stood": "remains, is kept",
    r"(is|are|was|were) away": "unreachable",
    r"(give|gives|gave|given|giving) up": "times out, is cancelled, is abandoned",
    r"so (many|long)": "N, up to N",
    r"passed over": "skipped, ignored",
    r"left out|leaves? out": "excluded (a site); default (a key)",
    r"lives?|silent": "running; without heartbeat",
    r"(trains?|nodes?|machines|parameter) apart": "independently, separate",
    r"(read|reads|reading) ahead|on (its|their) way": "prefetched, in transit",
    r"hid(es|den) behind": "overlaps with",
    r"slowest (site|one)": "straggler",
    r"mend(s|ed|ing|able)?": "fix",
    r"who(m|so)?ever": "any process that, anyone who, the caller",
    r"none of ours|of ours|of (its|their|our) own": "not ours, foreign; its own",
    r"all alike": "uniformly, equally",
    r"by hand|a person's retry": "manually, manual retry",
    r"armed again": "rescheduled",
    r"place in the stream": "position in the data stream",
    r"strangers?": "untrusted",
    r"lest": "so that ... not",
}
# Names that a program or a store keeps, which the pages quote.
EXCEPTIONS = ["--litter-age"]
TERMS = [
    *("idempotent", "resume", "retry", "retried", "timeout", "backoff", "prefetch", "straggler", "excluded"),
    *("garbage collection", "overlap", "checkpoint"),
]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    return [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def avoided(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, words, and what to write instead; also of words that two lines share."""
    for name in EXCEPTIONS:
        text = text.replace(name, " " * len(name))
    for pattern, write in AVOID.items():
        spread = pattern.replace(" ", r"\s+")
        for found in re.finditer(rf"\b(?:{spread})\b", text, re.IGNORECASE):
            yield text.count("\n", 0, found.start()) + 1, " ".join(found.group().split()), write


def sentences(text: str) -> Iterator[str]:
    """Those of paragraphs and list items; no tables, code or headings."""
    prose = "\n".join(line for line in FENCE.sub("", text).splitlines() if not line.startswith(("|", "#", "    ")))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", prose):
        yield from re.split(r"(?<=[.!?])\s+", " ".join(block.split()))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_dialect(page: Path) -> None:
    found = [f"{line}: '{words}'; write: {write}" for line, words, write in avoided(page.read_text("utf-8"))]
    assert found == []


def test_no_chains_of_semicolons() -> None:
    texts = [path.read_text("utf-8") for path in pages() if path.suffix == ".md"]
    assert [sentence for text in texts for sentence in sentences(text) if sentence.count(";") > 1] == []


def test_what_users_search_for_is_in_the_docs() -> None:
    docs = "\n".join(path.read_text("utf-8") for path in ROOT.glob("docs/*.md")).lower()
    assert [term for term in TERMS if term not in docs] == []


def test_words_are_found_across_lines_and_exceptions_are_not() -> None:
    found = avoided("a site is left\nout, `left_out` and --litter-age are names, and it GOES on")
    assert sorted((line, words) for line, words, _ in found) == [(1, "left out"), (2, "GOES on")]
