"""Three splits of the six domains' texts: training, validation for choices, test for reported figures.

Validation is each corpus's held-out file. Test is one training document of every TEST_EVERY, on which no site, no
tokenizer and no centralised run trains. Recipes and rates were chosen on the held-out files only, so that no
choice used a loss on the test texts.
"""

import gzip
from pathlib import Path

TEST_EVERY = 15
PARTS = ("valid", "test")


def three_splits(data: Path, domains: list[str], folder: Path) -> Path:
    """Write <folder>/<domain>/{train,valid,test}.jsonl.gz. Returns the folder."""
    for domain in domains:
        (folder / domain).mkdir(parents=True)
        with gzip.open(data / domain / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
            documents = list(lines)
        tests = documents[TEST_EVERY - 1 :: TEST_EVERY]
        del documents[TEST_EVERY - 1 :: TEST_EVERY]
        _write(folder / domain / "train.jsonl.gz", documents)
        _write(folder / domain / "test.jsonl.gz", tests)
        (folder / domain / "valid.jsonl.gz").symlink_to((data / domain / "valid.jsonl.gz").resolve())
    return folder


def _write(path: Path, lines: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.writelines(lines)
