"""Wrong federation files and the message that each one gets: line, key, value, remedy."""

import random
from pathlib import Path

import pytest
import yaml

from schemas.errors import FederationError, PhotonError
from schemas.reading.load import check_paths, load_federation

TABLE = yaml.safe_load(Path(__file__).with_name("bad_federations.yaml").read_text("utf-8"))

GOOD = """\
run: pile
store: rounds
seed: 17
tokenizer: bytes
model:
  n_layers: 2
  d_model: 64
  n_heads: 4
  vocab_size: 257
  max_seq_len: 128
rounds:
  count: 10
  quorum: 1
  deadline: 30m
local:
  steps: 8
  batch_size: 4
  optimizer:
    lr: 3e-4
    betas: [0.9, 0.95]
  schedule:
    warmup_steps: 5
  precision: fp32
  device: cpu
server:
  optimizer: nesterov
  momentum: 0.9
sites:
  - name: wikipedia
    streams:
      - name: wiki
        source: wiki.txt
        proportion: 0.75
      - name: news
        source: news/*.jsonl
        proportion: 0.25
  - name: arxiv
    state_dir: private
    streams:
      - name: papers
        source: papers.txt
"""
WORLD = GOOD.replace("sites:\n", "federations:\n  - name: europe\n    federation: europe.yaml\nsites:\n")
PARENT = "parent:\n  store: world\n  run: world\n  member: europe\n"
CHILD = GOOD.replace("  count: 10\n", "").replace("server:\n  optimizer: nesterov\n  momentum: 0.9\n", PARENT)
BASES = {"good": GOOD, "world": WORLD, "child": CHILD}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Everything that GOOD names, in place."""
    (tmp_path / "federation.yaml").write_text(GOOD, "utf-8")
    (tmp_path / "wiki.txt").write_text("text")
    (tmp_path / "papers.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("no text to train on")
    (tmp_path / "news").mkdir()
    (tmp_path / "news/1.jsonl").write_text('{"text": "text"}\n')
    return tmp_path


@pytest.mark.parametrize("base", BASES)
def test_the_file_that_the_cases_start_from_is_good(base: str, folder: Path) -> None:
    (folder / "federation.yaml").write_text(BASES[base], "utf-8")
    (folder / "europe.yaml").write_text(CHILD, "utf-8")
    check_paths(load_federation(folder / "federation.yaml"))


def test_a_folder_is_a_source_too(folder: Path) -> None:
    (folder / "federation.yaml").write_text(GOOD.replace("news/*.jsonl", "news", 1), "utf-8")
    check_paths(load_federation(folder / "federation.yaml"))


@pytest.mark.parametrize("row", TABLE, ids=[row["case"] for row in TABLE])
def test_message(row: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BASES[row.get("in", "good")]
    assert row["instead of"] in base
    (tmp_path / "federation.yaml").write_text(base.replace(row["instead of"], row["write"], 1), "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FederationError) as caught:
        load_federation("federation.yaml")
    assert str(caught.value) == "federation.yaml:" + row["message"].replace("{folder}", str(tmp_path))
    assert isinstance(caught.value, PhotonError)
    assert "hunter2" not in str(caught.value), "a password must not be repeated"


def test_there_are_enough_cases_and_no_two_alike() -> None:
    assert len(TABLE) >= 40
    assert len({row["case"] for row in TABLE}) == len(TABLE)
    assert len({(row.get("in"), row["instead of"], row["write"]) for row in TABLE}) == len(TABLE)


def test_every_problem_is_named_at_once_in_the_order_of_the_file(folder: Path) -> None:
    file = folder / "federation.yaml"
    text = (
        GOOD.replace("count: 10", "count: ten").replace("seed: 17", "seed: x").replace("name: news", "name: a b")
    )
    file.write_text(text, "utf-8")
    with pytest.raises(FederationError) as caught:
        load_federation(file)
    lines = str(caught.value).splitlines()
    assert [line.removeprefix(f"{file}:").split(": ")[:2] for line in lines] == [
        ["3", "seed"],
        ["12", "rounds.count"],
        ["34", "sites[wikipedia].streams[a b].name"],
    ]


def test_an_overridden_value_has_no_line_and_says_where_it_came_from(folder: Path) -> None:
    file = folder / "federation.yaml"
    with pytest.raises(FederationError) as caught:
        load_federation(file, {"rounds.count": 0, "round": {"count": 3}})
    assert str(caught.value).splitlines() == [
        f"{file}: round: (overridden on the command line) unknown key; did you mean 'rounds'?",
        f"{file}: rounds.count: (overridden on the command line) 0 is out of range; write a number of at least 1",
    ]
    with pytest.raises(FederationError, match=r"store\.name: cannot be overridden, store is not a section"):
        load_federation(file, {"store.name": 1})


def test_any_damage_is_either_harmless_or_named(folder: Path) -> None:
    """400 random damages: lines lost, doubled or swapped, characters and values put in their place."""
    file, dice = folder / "federation.yaml", random.Random(17)
    values = [
        "",
        "null",
        "[]",
        "{}",
        "[1, [2]]",
        "{a: {b: 1}}",
        "-1",
        "1e999",
        "true",
        "'\\0'",
        "~",
        "*x",
        "&x",
        "!t",
        ": :",
    ]
    for _ in range(400):
        lines = GOOD.splitlines()
        for _ in range(dice.randint(1, 3)):
            i, j = dice.randrange(len(lines)), dice.randrange(len(lines))
            damage = dice.randrange(5)
            if damage == 0:
                del lines[i]
            elif damage == 1:
                lines.insert(i, lines[j])
            elif damage == 2:
                lines[i], lines[j] = lines[j], lines[i]
            elif damage == 3:
                lines[i] = lines[i].split(":")[0] + ": " + dice.choice(values)
            else:
                at = dice.randrange(len(lines[i]) + 1)
                lines[i] = lines[i][:at] + dice.choice("\t\x00\x1b'\"[]{}:,&*!|>%@`#-") + lines[i][at:]
        file.write_text("\n".join(lines), "utf-8")
        try:
            load_federation(file)
        except FederationError as error:
            assert all(line.startswith(f"{file}:") for line in str(error).splitlines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "federation.yaml: the file is empty; write at least run, store"),
        (b"# nothing\n", "federation.yaml: the file is empty; write at least run, store"),
        (b"- run: pile\n", "federation.yaml:1: the file is not a mapping; write keys such as `run: my-run`"),
        (b"pile\n", "federation.yaml:1: the file is not a mapping; write keys such as `run: my-run`"),
        (b"run: pile\nstore: r\xe9\n", "federation.yaml:2: is not UTF-8 text; save the file as UTF-8"),
        (b"[" * 5000, "federation.yaml: nested too deeply; a federation file has a few levels"),
    ],
)
def test_not_a_federation_file_at_all(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "federation.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FederationError) as caught:
        load_federation("federation.yaml")
    assert str(caught.value).startswith(message)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="does not exist; check the path"):
        load_federation(tmp_path / "none.yaml")
    with pytest.raises(FederationError, match="is a folder; write the path of the federation file in it"):
        load_federation(tmp_path)


PLACES = [
    ("store: rounds", "store: federation.yaml/rounds", "2: store: '{folder}/federation.yaml/rounds' cannot be a "
     "folder: '{folder}/federation.yaml' is a file; write another folder"),
    ("store: rounds", "store: warp://bucket", "2: store: 'warp://bucket' cannot be opened"),
    ("tokenizer: bytes", "tokenizer: bpe.json", "4: tokenizer: '{folder}/bpe.json' does not exist; write 'bytes', "
     "the path of a tokenizer.json, or a Hugging Face name"),
    ("tokenizer: bytes", "tokenizer: ./news", "4: tokenizer: '{folder}/news' is a folder; write the file in it: "
     "{folder}/news/tokenizer.json"),
    ("wiki.txt", "none.txt", "32: sites[wikipedia].streams[wiki].source: '{folder}/none.txt' does not exist; "
     "write the path of .jsonl, .txt (also .gz, .zst) or .parquet files, or a URL"),
    ("news/*.jsonl", "empty", "35: sites[wikipedia].streams[news].source: '{folder}/empty' contains no readable "
     "file; put .jsonl, .txt (also .gz, .zst) or .parquet files there"),
    ("news/*.jsonl", "federation.yaml", "35: sites[wikipedia].streams[news].source: '{folder}/federation.yaml' "
     "has an unsupported ending; name only .jsonl, .txt (also .gz, .zst) or .parquet files"),
    ("news/*.jsonl", "empty/*", "35: sites[wikipedia].streams[news].source: '{folder}/empty/notes.md' has an "
     "unsupported ending; name only .jsonl, .txt (also .gz, .zst) or .parquet files"),
    ("news/*.jsonl", "news/*.parquet", "35: sites[wikipedia].streams[news].source: no file matches "
     "'{folder}/news/*.parquet'; correct the pattern, or put the files there"),
    ("papers.txt", "memory://nowhere/papers.txt", "41: sites[arxiv].streams[papers].source: "
     "'memory://nowhere/papers.txt' does not exist; correct the address, or put the files there"),
    ("papers.txt", "memory://nowhere/*.txt", "41: sites[arxiv].streams[papers].source: "
     "'memory://nowhere/*.txt' does not exist; correct the address, or put the files there"),
    ("state_dir: private", "state_dir: federation.yaml", "38: sites[arxiv].state_dir: '{folder}/federation.yaml' "
     "cannot be a folder: '{folder}/federation.yaml' is a file; write another folder"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), PLACES)
def test_places(old: str, new: str, message: str, folder: Path) -> None:
    file = folder / "federation.yaml"
    file.write_text(GOOD.replace(old, new, 1), "utf-8")
    federation = load_federation(file)
    with pytest.raises(FederationError) as caught:
        check_paths(federation, file=file)
    assert str(caught.value).startswith(f"{file}:" + message.replace("{folder}", str(folder)))
    assert "\n" not in str(caught.value)
    with pytest.raises(FederationError) as caught:
        check_paths(federation)
    key = message.split(": ", 1)[1].split(": ")[0]
    assert str(caught.value).startswith(f"{key}: "), "without the file a message still names the key"


def test_only_the_sites_asked_for_are_looked_at(folder: Path) -> None:
    (folder / "wiki.txt").unlink()
    federation = load_federation(folder / "federation.yaml")
    check_paths(federation, sites=["arxiv"])
    check_paths(federation, sites=[])
    with pytest.raises(FederationError, match=r"sites\[wikipedia\]\.streams\[wiki\]\.source"):
        check_paths(federation, sites=["wikipedia"])
