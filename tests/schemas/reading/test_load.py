"""Reading a federation file: places, overrides, YAML as people write it, and lightness."""

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import FederationError
from schemas.reading.load import check_paths, load_federation

TEXT = """\
run: r
store: {store}
tokenizer: {tokenizer}
model: {{n_layers: 1, d_model: 32, n_heads: 2, vocab_size: 50_257, max_seq_len: 1_024}}
rounds: {{count: 5}}
local: {{steps: 10, batch_size: 2, optimizer: {{lr: 3e-4, eps: 1E-9, weight_decay: 1.}}}}
sites:
  - name: a
    streams: [{{name: s, source: {source}}}]
  - name: b
    state_dir: {state}
    streams: [{{name: s, source: "~/b/*.txt"}}]
"""
MERGED = """\
    pool: &p west
  - <<: {pool: *p, name: hidden}
    name: c
    streams: &s
      - {name: x, source: x.txt, proportion: 0.5}
      - {name: y, source: y.txt, proportion: 0.5}
  - {name: d, streams: *s}
"""
WRONG_IN_THE_ANCHOR = """\
  - &c
    name: c
    pool: a b
    streams: [{name: s, source: s.txt}]
  - <<: *c
    name: d
"""


def write(folder: Path, **places: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "federation.yaml"
    file.write_text(
        TEXT.format(**{"store": "store", "tokenizer": "bytes", "source": "a.txt", "state": "b", **places})
    )
    return file


def test_local_places_are_taken_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    file = write(tmp_path / "f", store="../store", source="texts/./a.txt", state="~/state", tokenizer="bpe.json")
    monkeypatch.chdir(tmp_path)
    for path in (file, Path("f/federation.yaml"), "f/federation.yaml"):
        federation = load_federation(path)
        assert federation.store == str(tmp_path / "store")
        assert federation.tokenizer == str(tmp_path / "f/bpe.json")
        a, b = federation.sites
        assert a.streams[0].source == str(tmp_path / "f/texts/a.txt")
        assert b.streams[0].source == "/home/someone/b/*.txt"
        assert a.state_dir == str(tmp_path / "f/photon-sites/r/a")
        assert b.state_dir == "/home/someone/state"


def test_urls_and_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path, store="s3://bucket/x", source="/data/*.jsonl.gz", state="/b"))
    assert (federation.store, federation.sites[1].state_dir) == ("s3://bucket/x", "/b")
    assert federation.sites[0].streams[0].source == "/data/*.jsonl.gz"
    chained = load_federation(write(tmp_path, source="'simplecache::s3://bucket/a.txt'"))
    assert chained.sites[0].streams[0].source == "simplecache::s3://bucket/a.txt"


@pytest.mark.parametrize("name", ["bytes", "gpt2", "EleutherAI/gpt-neox-20b"])
def test_names_of_tokenizers_stay_as_they_are(name: str, tmp_path: Path) -> None:
    assert load_federation(write(tmp_path, tokenizer=name)).tokenizer == name


def test_a_tokenizer_file_goes_before_a_name_at_the_hub(tmp_path: Path) -> None:
    (tmp_path / "gpt2").write_text("{}")
    assert load_federation(write(tmp_path, tokenizer="gpt2")).tokenizer == str(tmp_path / "gpt2")


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path))
    optimizer = federation.local.optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.weight_decay) == (3e-4, 1e-9, 1.0)
    assert (federation.model.vocab_size, federation.model.max_seq_len) == (50_257, 1024)


def test_words_that_old_yaml_reads_as_something_else(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text(file.read_text().replace("name: a", "name: no").replace("run: r", "run: 2026-01-31"))
    federation = load_federation(file)
    assert (federation.run, federation.sites[0].name) == ("2026-01-31", "no")


def test_anchors_and_merges(tmp_path: Path) -> None:
    file = write(tmp_path)
    text = file.read_text().replace("rounds: {count: 5}", "rounds: &r {count: 5}")
    file.write_text(text + MERGED)
    federation = load_federation(file)
    assert [(s.name, s.pool) for s in federation.sites[1:]] == [("b", "west"), ("c", "west"), ("d", None)]
    assert federation.sites[2].streams == federation.sites[3].streams


def test_a_problem_in_a_merged_section_is_named_where_it_is_written(tmp_path: Path) -> None:
    file = write(tmp_path)
    at = len(file.read_text().splitlines())
    file.write_text(file.read_text() + WRONG_IN_THE_ANCHOR)
    with pytest.raises(FederationError) as caught:
        load_federation(file)
    starts = [line.split(" ")[:2] for line in str(caught.value).splitlines()]
    assert starts == [[f"{file}:{at + 3}:", f"sites[{s}].pool:"] for s in "cd"]


def test_overrides_dotted_and_nested(tmp_path: Path) -> None:
    file = write(tmp_path)
    overrides = {"rounds.count": 7, "local": {"steps": 3, "schedule": {"warmup_steps": 2}}, "server.lr": 0.5}
    federation = load_federation(file, overrides)
    assert (federation.rounds.count, federation.server.lr) == (7, 0.5)
    assert (federation.local.steps, federation.local.batch_size) == (3, 2)
    assert federation.local.schedule.warmup_steps == 2
    assert load_federation(file, {"store": "other"}).store == str(tmp_path / "other")
    assert load_federation(file, {}) == load_federation(file)


def test_the_same_file_is_the_same_federation(tmp_path: Path) -> None:
    assert load_federation(write(tmp_path)) == load_federation(write(tmp_path))


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_federation(file).run == "r"


def test_file_urls_are_looked_at_as_files(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    url = f"file://{tmp_path}"
    federation = load_federation(write(tmp_path, store=f"{url}/store", source=f"'{url}/text/*.txt'"))
    check_paths(federation, sites=["a"])


def test_looking_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    file = write(tmp_path)
    check_paths(load_federation(file), sites=["a"], file=file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "federation.yaml"]


def test_a_large_federation_is_read(tmp_path: Path) -> None:
    file = write(tmp_path)
    more = "".join(f"  - name: s{i}\n    streams: [{{name: s, source: s.txt}}]\n" for i in range(500))
    file.write_text(file.read_text() + more)
    assert len(load_federation(file).sites) == 502


def test_loading_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'prefect', 'composer', 'streaming', 'numpy', 'pandas', 'fsspec', 'transformers', 'pyarrow'}"
    code = f"import sys, schemas.reading.load; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
