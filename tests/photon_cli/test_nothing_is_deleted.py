"""Photon deletes only what Photon made: whatever lies where it works, and however places overlap."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from photon_cli import main as command
from photon_core.data.manifest import load_manifest
from photon_core.data.prepare import prepare_site
from photon_core.data.quality import check_shards
from photon_core.data.tokenizer import load_tokenizer
from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.view import view_of

Photon = Callable[..., tuple[int, str]]


@pytest.fixture
def photon(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Photon:
    """Function: the command line with these arguments; the exit code, and what it has printed."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["photon", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is not the federation file's."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(file: Path, **site: Any) -> None:
    """Change the first site's section, or with dots another value: {'store': ...}."""
    data = yaml.safe_load(file.read_text())
    data |= {key: site.pop(key) for key in ("store", "trackers") if key in site}
    if "source" in site:
        data["sites"][0]["streams"][0]["source"] = site.pop("source")
    data["sites"][0] |= site
    file.write_text(yaml.safe_dump(data, sort_keys=False))


SOURCE, STATE, SHARDS = "sites[a].streams[text].source", "sites[a].state_dir", "sites[a].shards"
OVERLAPS: list[tuple[dict[str, Any], str, str]] = [
    ({"state_dir": "srv", "source": "srv/data/*.jsonl"}, STATE, SOURCE),
    ({"state_dir": "srv", "source": "srv/data"}, STATE, SOURCE),
    ({"state_dir": "srv", "source": "srv/data/a.jsonl"}, STATE, SOURCE),
    ({"state_dir": "srv", "source": "file://{folder}/srv/data/*.jsonl"}, STATE, SOURCE),
    ({"state_dir": "srv", "source": "sr*/data/*.jsonl"}, STATE, SOURCE),
    ({"state_dir": "srv", "source": "./**/*.jsonl"}, "store", SOURCE),
    ({"state_dir": "srv/data/private", "source": "srv/data/*.jsonl"}, STATE, SOURCE),
    ({"state_dir": "srv/../srv/data", "source": "srv/data"}, STATE, SOURCE),
    ({"state_dir": "srv", "store": "srv/data"}, STATE, "store"),
    ({"state_dir": "store/private"}, STATE, "store"),
    ({"state_dir": "srv", "shards": "srv/data"}, SHARDS, STATE),
    ({"shards": "store/shards"}, SHARDS, "store"),
    ({"shards": "text"}, SHARDS, SOURCE),
    ({"shards": "s3://b/x", "source": "s3://b/x/y/*.jsonl"}, SHARDS, SOURCE),
    ({"store": "text"}, "store", SOURCE),
    ({"state_dir": "sites"}, "sites[b].state_dir", STATE),
    ({"source": "sites/b/data/*.jsonl"}, "sites[b].state_dir", SOURCE),
    ({"trackers": [{"name": "tensorboard", "folder": "text"}]}, "trackers[tensorboard].folder", SOURCE),
]
COMMANDS = [["prepare"], ["run"], ["plan"], ["deploy"], ["status"], ["report"], ["gc"], ["export", "--to", "out"],
            ["join", "--site", "a"], ["join", "--coordinator"]]  # fmt: skip


@pytest.mark.parametrize(("places", "one", "other"), OVERLAPS)
def test_places_that_overlap_are_refused_by_name_by_every_command(
    places: dict[str, Any], one: str, other: str, write_federation: Callable[..., Path], photon: Photon
) -> None:
    file = write_federation()
    folder = file.parent
    for name in ("srv/data/a.jsonl", "srv/data/notes/precious.txt", "srv/data/db.sqlite"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    edit(file, **json.loads(json.dumps(places).replace("{folder}", str(folder))))
    before = contents(folder)
    for arguments in COMMANDS if places is OVERLAPS[0][0] else COMMANDS[:2]:
        code, said = photon(*arguments, file)
        assert code == 2, said
        assert one in said and other in said and "federation.yaml:" in said
        assert contents(folder) == before


LINKS: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({"private": "srv"}, {"state_dir": "private", "source": "srv/data/*.jsonl"}, STATE),
    ({"texts": "srv/data"}, {"state_dir": "srv", "source": "texts/*.jsonl"}, STATE),
    ({"state/data": "text"}, {"state_dir": "state"}, STATE),
    ({"linked/a.jsonl": "srv/data/a.jsonl"}, {"state_dir": "srv", "source": "linked/*.jsonl"}, STATE),
    ({"linked/below": "srv/data"}, {"state_dir": "srv", "source": "linked"}, STATE),
    ({"elsewhere": "srv"}, {"state_dir": "srv", "store": "elsewhere/store"}, STATE),
    ({"elsewhere": "sites/b"}, {"state_dir": "elsewhere"}, "sites[b].state_dir"),
]


@pytest.mark.parametrize(("links", "places", "key"), LINKS)
def test_links_are_resolved_where_the_site_is(
    links: dict[str, str],
    places: dict[str, Any],
    key: str,
    write_federation: Callable[..., Path],
    photon: Photon,
) -> None:
    file = write_federation()
    folder = file.parent
    (folder / "srv/data").mkdir(parents=True)
    (folder / "srv/data/a.jsonl").write_bytes((folder / "text/a.jsonl").read_bytes())
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(folder / target)
    edit(file, **places)
    before = contents(folder)
    for arguments in (["prepare", "--site", "a"], ["run"]):
        code, said = photon(*arguments, file)
        assert code == 2 and key in said and "links resolved" in said, said
        assert contents(folder) == before


def test_prepare_leaves_what_it_did_not_make(write_federation: Callable[..., Path], photon: Photon) -> None:
    """Through a first preparation, a changed text, a stream of another name and a failure."""
    file = write_federation(sites=("a",))
    root = file.parent / "sites/a/data"
    mine = {
        name: name.encode()
        for name in ("notes.txt", "archive/2024.jsonl", "text/precious.txt", "text/train/mine.bin",
                     ".text.unfinished/x", "news/stream.txt", "text-old/data.json")
    }  # fmt: skip
    for name, content in mine.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    source = file.parent / "text/a.jsonl"
    lines = source.read_text().splitlines()

    def still_there() -> dict[str, bytes]:
        found = contents(root)
        assert {name: found.pop(name) for name in mine} == mine
        return {name: content for name, content in found.items() if name != ".next/.photon"}

    assert photon("prepare", file)[0] == 0
    assert {"data.json", "text/stream.json", "text/train/index.json"} <= still_there().keys()
    source.write_text("\n".join(lines[:-3]) + "\n")
    assert photon("prepare", file)[0] == 0
    first = still_there()
    assert not (root / ".photon").exists(), "a folder that held foreign files is never marked as ours"
    file.write_text(file.read_text().replace("name: text\n", "name: news\n"))
    assert photon("prepare", file)[0] == 0
    second = still_there()
    assert not any(name.startswith("text/") for name in second) and first.keys() != second.keys()
    source.write_text(json.dumps({"text": None}) + "\n" + source.read_text())
    assert photon("prepare", file)[0] == 1
    assert still_there() == second


@pytest.mark.parametrize("name", ["data.json", "text/stream.json", "text/train/index.json", ".next/mine", "text",
                                  "text/train", "text/train/shard.00000.mds"])  # fmt: skip
def test_a_file_in_the_way_is_named_before_any_work(
    name: str, write_federation: Callable[..., Path], photon: Photon
) -> None:
    file = write_federation(sites=("a",))
    path = file.parent / "sites/a/data" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = contents(file.parent)
    code, said = photon("prepare", file)
    assert code == 1 and "move it away" in said and str(path).removesuffix("/mine") in said.replace("\n", "")
    assert contents(file.parent) == before


def test_a_stream_that_is_a_link_out_of_its_folder_is_named_before_any_work(
    write_federation: Callable[..., Path], photon: Photon
) -> None:
    file = write_federation(sites=("a",))
    mine = file.parent / "mine/train/shard.00000.mds.zstd"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (file.parent / "sites/a/data").mkdir(parents=True)
    (file.parent / "sites/a/data/text").symlink_to(file.parent / "mine")
    before = contents(file.parent)
    code, said = photon("prepare", file)
    assert code == 1 and "is a link out of" in said
    assert contents(file.parent) == before


def test_a_copy_that_somebody_made_of_a_stream_stays_whole(
    write_federation: Callable[..., Path], photon: Photon
) -> None:
    """cp -r, marker and records included: what it names is not where the copy is."""
    file = write_federation(sites=("a",))
    root = file.parent / "sites/a/data"
    assert photon("prepare", file)[0] == 0
    copies = {"text": root / "text.bak", ".": file.parent / "sites/b/data"}
    for name, copy in copies.items():
        shutil.copytree(root / name, copy)
    (file.parent / "sites/b/data/notes.txt").write_text("mine")
    before = contents(root / "text.bak")
    for state_dir in ("sites/a", "sites/b"):
        edit(file, state_dir=state_dir)
        file.write_text(file.read_text().replace("name: text\n", "name: news\n"))
        assert photon("prepare", file)[0] == 0
        assert not (file.parent / state_dir / "data/text").exists()
    assert contents(root / "text.bak") == before
    assert (file.parent / "sites/b/data/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["news", "news/train"])
def test_the_old_shards_stay_usable_where_a_file_is_in_the_new_ones_way(
    name: str, write_federation: Callable[..., Path], photon: Photon
) -> None:
    file = write_federation(sites=("a",))
    assert photon("prepare", file)[0] == 0
    path = file.parent / "sites/a/data" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before, text = contents(file.parent / "sites/a/data"), file.read_text()
    file.write_text(text.replace("name: text\n", "name: news\n"))
    code, said = photon("prepare", file)
    assert code == 1 and "move it away" in said
    assert contents(file.parent / "sites/a/data") == before
    file.write_text(text)
    federation = load_federation(file)
    assert not check_shards(view_of(federation, "a"), load_tokenizer("bytes").sha256).failed


def test_a_users_home_and_relative_places_are_resolved_where_the_site_is(
    write_federation: Callable[..., Path], photon: Photon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file has them, and as the parameters of a flow run do, which no file has made absolute."""
    file = write_federation()
    folder = file.parent
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    (folder / "srv").mkdir()
    (folder / "text").rename(folder / "srv/data")
    edit(file, state_dir="~/srv", source="file://~/srv/data/a.jsonl")
    before = contents(folder)
    code, said = photon("prepare", file)
    assert code == 2 and STATE in said and SOURCE in said, said
    asked = load_federation(file).model_dump(mode="json")
    for state_dir, source in (
        ("srv", f"{folder}/srv/data/*.jsonl"),
        ("~/srv", "srv/data"),
        ("./srv/x/..", "~/srv"),
    ):
        asked["sites"][0]["state_dir"], asked["sites"][0]["streams"][0]["source"] = state_dir, source
        with pytest.raises(FederationError, match=re.escape(SOURCE)):
            prepare_site(view_of(Federation.model_validate(asked), "a"))
    assert contents(folder) == before


def test_links_in_a_circle_among_the_texts_end(write_federation: Callable[..., Path], photon: Photon) -> None:
    file = write_federation(sites=("a",))
    for name in "xyz":
        (file.parent / "text" / name).symlink_to(file.parent / "text")
    for source in ("text/**/*.jsonl", "text"):
        edit(file, source=source)
        assert photon("prepare", file)[0] == 0


def test_a_preparation_that_fails_leaves_the_old_shards_usable(
    write_federation: Callable[..., Path], photon: Photon
) -> None:
    file = write_federation(sites=("a",))
    assert photon("prepare", file)[0] == 0
    root = file.parent / "sites/a/data"
    before = contents(root)
    with (file.parent / "text/a.jsonl").open("a") as source:
        source.write(json.dumps({"text": "x" * 11_000_000}) + "\n")
    code, said = photon("prepare", file)
    assert code == 1 and "longest_document_bytes" in said
    assert {n: c for n, c in contents(root).items() if not n.startswith(".next/")} == before
    federation = load_federation(file)
    assert not check_shards(view_of(federation, "a"), load_tokenizer("bytes").sha256).failed


def _prepare_until(file: Path, renames: int) -> None:
    """Prepare, and be killed before that many renames into place."""
    rename, left = Path.replace, [renames]

    def replace(self: Path, target: Path) -> Path:
        if self.parts[-4:-3] == (".next",) or self.parts[-2:-1] == (".next",) or target.parent.name == ".next":
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        return rename(self, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]
    prepare_site(view_of(load_federation(file), "a"))


@pytest.mark.parametrize("renames", range(0, 8, 2))
def test_killed_while_the_new_shards_take_the_old_ones_place(
    renames: int, write_federation: Callable[..., Path]
) -> None:
    """Whichever rename it was, the site validates as before, or with the new shards whole."""
    file = write_federation(sites=("a",))
    federation = load_federation(file)
    old = prepare_site(view_of(federation, "a"))
    source = file.parent / "text/a.jsonl"
    source.write_text("\n".join(source.read_text().splitlines()[:-5]) + "\n")
    child = multiprocessing.get_context("fork").Process(target=_prepare_until, args=(file, renames))
    child.start()
    child.join(200)
    assert child.exitcode == -signal.SIGKILL
    assert not check_shards(view_of(federation, "a"), old.tokenizer_sha256).failed
    now = load_manifest(view_of(federation, "a"))
    assert now == old if renames < 2 else now != old
    new = prepare_site(view_of(federation, "a"))
    named = {entry.path for stream in new.streams.values() for entry in stream.files}
    assert set(contents(view_of(federation, "a").data_dir)) == {*named, "data.json", ".photon"}


TARGETS: list[tuple[list[str], str]] = [
    (["report", "--to", "text/a.jsonl"], SOURCE),
    (["report", "--to", "sites/a/page.html"], STATE),
    (["report", "--to", "store/page.html"], "store"),
    (["report", "--to", "linked/page.html"], "store"),
    (["plan", "--to", "text/a.jsonl/plan.html"], SOURCE),
    (["plan", "--to", "sites/b/plan.svg"], "sites[b].state_dir"),
    (["export", "--to", "sites"], STATE),
    (["export", "--to", "store/model"], "store"),
    (["export", "--to", "sites/a/data/model"], STATE),
    (["report", "--to", "mine.html"], "photon did not write"),
    (["report", "--to", "federation.yaml"], "photon did not write"),
    (["plan", "--to", "mine.html"], "photon did not write"),
    (["plan", "--to", "mine.svg"], "photon did not write"),
    (["export", "--to", "text"], "sites[a].streams[text].source"),
    (["export", "--to", "mine"], "not empty"),
]


@pytest.mark.parametrize(("arguments", "reason"), TARGETS)
def test_a_target_takes_no_users_file_and_no_place_of_the_federation(
    arguments: list[str],
    reason: str,
    committed: Callable[..., Path],
    photon: Photon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = committed(1)
    monkeypatch.chdir(file.parent)
    Path("mine").mkdir()
    for name in ("mine.html", "mine.svg", "mine/model.safetensors"):
        Path(name).write_text("<html>my own</html>")
    Path("linked").symlink_to("store")
    before = contents(file.parent)
    code, said = photon(*arguments, file)
    assert code == 2 and reason in said.replace("\n", " "), said
    assert contents(file.parent) == before


def test_a_page_of_ours_is_written_over(
    committed: Callable[..., Path], photon: Photon, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = committed(1)
    other = committed(2, folder="other")
    monkeypatch.chdir(file.parent)
    for arguments in (["report", file], ["compare", file, other]):
        assert photon(*arguments, "--to", "page.html")[0] == 0
        assert photon(*arguments, "--to", "page.html")[0] == 0
    assert photon("compare", file, other, "--to", "text/a.jsonl")[0] == 2
    assert photon("compare", f"{file.parent}/store/tiny", other, "--to", "store/tiny/rounds/x.html")[0] == 2
    assert not Path("store/tiny/rounds/x.html").exists()


def test_the_demo_leaves_a_federation_file_of_somebodys_own(tmp_path: Path, photon: Photon) -> None:
    file = tmp_path / "federation.yaml"
    file.write_text("# mine\nrun: mine\nrounds: {count: 3}\n")
    code, said = photon("demo", "--to", tmp_path, "--rounds", "7")
    assert code == 2 and "not as the demo wrote it" in said
    assert contents(tmp_path) == {"federation.yaml": b"# mine\nrun: mine\nrounds: {count: 3}\n"}
