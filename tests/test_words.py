"""The words of pages, and of the strings, docstrings and comments of code: plain technical English, and the terms
that users search for."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "examples/**/*.yaml", "Makefile"]
MORE = ["benchmarks/*.md", "prefect.yaml", "photon_core/report/page.[ch]*", "schemas/**/*.json", "tests/**/*.yaml"]
CODE = ["schemas", "photon_core", "tasks", "flows", "photon_cli", "benchmarks", "docs", "tests"]
# Words that must not be written -> what to write instead.
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
# Names that a program, a store or a Prefect server keeps, and texts of other programs.
EXCEPTIONS = ["--litter-age", "/site left out", "server.silent", "|live|", "data stream start afresh"]
KEYS = {"left out"}  # whole strings that are keys of `photon status --json`
TERMS = [
    *("idempotent", "resume", "retry", "retried", "timeout", "backoff", "prefetch", "straggler", "excluded"),
    *("garbage collection", "overlap", "checkpoint"),
]
SPREAD = {rf"\b(?:{pattern})\b".replace(" ", r"\s+"): write for pattern, write in AVOID.items()}
PATTERNS = {re.compile(pattern, re.IGNORECASE): write for pattern, write in SPREAD.items()}
ANY = re.compile("|".join(SPREAD))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
QUOTES = re.compile(r"""([a-z]*)('{3}|"{3}|['"])(.*)\2""", re.IGNORECASE | re.DOTALL)
FIELD = re.compile(r"\{[^{}]*\}")  # an expression in an f-string


def pages(*patterns: str) -> list[Path]:
    return [path for pattern in patterns or PAGES for path in sorted(ROOT.glob(pattern))]


def words_of(code: str) -> str:
    """The strings and comments of code, each at its line, with a | for code between them.

    So a sentence in several comments or concatenated strings is one text. Expressions in f-strings are no words.
    """
    parts, line = [""], 1
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            parts.append("\n" * (token.start[0] - line) + " ")
            parts.append(_text(token.string) if token.type == tokenize.STRING else token.string.lstrip("#"))
            line = token.end[0]
        elif token.type != tokenize.NL and parts[-1] != "|":
            parts.append("|")
    return "".join(parts)


def _text(string: str) -> str:
    """A string without prefix, quotes and expressions; empty for one of KEYS."""
    prefix, _, text = QUOTES.fullmatch(string).groups()  # type: ignore[union-attr]
    return "" if text in KEYS else FIELD.sub("{}", text) if "f" in prefix.lower() else text


def avoided(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, words, and what to write instead; also of words that two lines share."""
    for name in EXCEPTIONS:
        text = text.replace(name, " " * len(name))
    if not ANY.search(text.lower()):  # the common case, 20 times faster than each pattern
        return
    for pattern, write in PATTERNS.items():
        for found in pattern.finditer(text):
            yield text.count("\n", 0, found.start()) + 1, " ".join(found.group().split()), write


def sentences(text: str) -> Iterator[str]:
    """Those of paragraphs and list items; no tables, code or headings."""
    prose = "\n".join(line for line in FENCE.sub("", text).splitlines() if not line.startswith(("|", "#", "    ")))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )", prose):
        yield from re.split(r"(?<=[.!?])\s+", " ".join(block.split()))


@pytest.mark.parametrize("page", pages(*PAGES, *MORE), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_dialect(page: Path) -> None:
    found = [f"{line}: '{words}'; write: {write}" for line, words, write in avoided(page.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize("folder", CODE)
def test_no_dialect_in_code(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: '{words}'; write: {write}"
        for path in sorted((ROOT / folder).rglob("[!.]*.py"))
        if path != Path(__file__) and "site-packages" not in path.parts  # as in a peer's environment
        for line, words, write in avoided(words_of(path.read_text("utf-8")))
    ]
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


def test_the_words_of_code_are_its_strings_and_comments() -> None:
    code = 'goes_on = (f"{told} is left "\n    "out")\n# it went\n# on\nx = "so", many\ny = "left out"\n'
    assert sorted((line, words) for line, words, _ in avoided(words_of(code))) == [(1, "left out"), (3, "went on")]
