"""photon plan: what it prints and writes, without torch."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from photon_cli.main import app
from photon_core.errors import DataError
from schemas.errors import FederationError
from tests.federations import sections, site

SITES = [
    site(name, hardware={"tflops": 100, "memory_gb": 80}, link={"up": up})
    for name, up in (("north", 1), ("south", 0.1))
]


def write(folder: Path, **changes: Any) -> str:
    plan: dict[str, Any] = {
        "store": "store",
        "model": {"preset": "125M"},
        "rounds": {"count": 10},
        "local": {"steps": 100, "batch_size": 8},
        "sites": SITES,
    }
    (folder / "federation.yaml").write_text(yaml.safe_dump(sections(recipe=None, **plan | changes)))
    return str(folder / "federation.yaml")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False, env={"COLUMNS": "140"})
    assert result.exit_code == 0
    return result.output


def test_tables(tmp_path: Path) -> None:
    text = run(write(tmp_path))
    assert "125,311,488 parameters, 2 of 2 sites a round, 100 local steps, 10 rounds; from what the sites" in text
    assert "recipe none: named in the file" in text
    assert "adamw at the sites (lr 0.0006, moments keep), fedavg at the server (lr 1)" in text
    for part in (
        "north",
        "ring all-reduce",
        "data-parallel, parameter server (each step)",
        "← best",
        "the file's",
    ):
        assert part in text


def test_it_names_what_a_file_gets_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(sections(store="store", local={"batch_size": 2})))
    text = " ".join(run(str(tmp_path / "federation.yaml")).split())
    assert "recipe unlike-sites: the file names no recipe, preset or model.preset; measured at 1 M" in text
    assert "muon at the sites (lr 0.016, matrix_lr 0.02, moments average), nesterov" in text
    facts = json.loads(run(str(tmp_path / "federation.yaml"), "--json"))
    found = [facts[key] for key in ("recipe", "optimizer", "server_optimizer")]
    assert found == ["unlike-sites", "muon", "nesterov"]


def test_it_says_which_recipe_a_published_size_gets_and_why(tmp_path: Path) -> None:
    """Point 10: not a learning rate that was found at another size."""
    said = {"store": "store", "model": {"preset": "1.3B"}, "local": {"steps": 64, "schedule": {"warmup_steps": 9}}}
    file = tmp_path / "federation.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in sections(**said).items() if key != "rounds"}))
    text = " ".join(run(str(file)).split())
    assert "recipe fedmom: the published settings of model.preset: 1.3B, a size at which unlike-sites was" in text
    assert "adamw at the sites (lr 0.0002, moments keep), fedmom at the server (lr 0.2, momentum 0.9)" in text
    assert "published settings of model.preset: 1.3B" in json.loads(run(str(file), "--json"))["recipe_because"]
    small = said | {"local": {"batch_size": 2}}
    file.write_text(yaml.safe_dump(sections(**small, recipe="unlike-sites")))
    assert "recipe unlike-sites: named in the file, although it was never measured at this size" in run(str(file))


def test_json_is_what_the_tables_say(tmp_path: Path) -> None:
    facts = json.loads(run(write(tmp_path), "--json"))
    assert facts["run_seconds"] == pytest.approx(10 * facts["round_seconds"])
    slow = facts["sites"][1]
    assert slow["upload_seconds"] == pytest.approx(4 * 125_311_488 * 8 / 0.1e9)
    assert facts["best_local_steps"] in (64, 128, 256, 512, 1000, 1024)
    assert facts["data_parallel_seconds"] > facts["run_seconds"]


def test_page_and_picture(tmp_path: Path) -> None:
    file = write(tmp_path)
    run(file, "--to", str(tmp_path / "plan.html"))
    run(file, "--to", str(tmp_path / "plan.svg"))
    page, picture = (tmp_path / "plan.html").read_text(), (tmp_path / "plan.svg").read_text()
    assert page.count("<svg") == 1 and "ring all-reduce" in page and len(page) < 500_000
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert picture.startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["federation.yaml", "plan.html", "plan.svg"]


def test_a_fixed_micro_batch_that_does_not_fit(tmp_path: Path) -> None:
    local = {"steps": 100, "batch_size": 64}
    text = run(write(tmp_path, local=local))
    assert "north has no memory for 64 sequences at once; write micro_batch: auto" in text
    assert "no memory" not in run(write(tmp_path, local={**local, "micro_batch": "auto"}))


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_cannot_train_is_refused_before_anything_is_prepared(command: str, tmp_path: Path) -> None:
    sharded = {"devices": 8, "tflops": 100, "parallel": "fsdp"}
    sites, local = [site("a", hardware=sharded)], {"batch_size": 8}

    def invoke(**recipe: Any) -> None:
        file = tmp_path / "federation.yaml"
        text = sections(store="store", local=local, sites=sites, **recipe)
        file.write_text(yaml.safe_dump(text))
        CliRunner().invoke(app, [command, str(file)], catch_exceptions=False)

    with pytest.raises(FederationError, match=r"of recipe: unlike-sites.* write recipe: diloco, or recipe: null"):
        invoke()
    with nullcontext() if command == "plan" else pytest.raises(DataError, match="not prepared yet"):
        invoke(recipe="diloco")


def test_without_declared_hardware_it_says_what_to_write(tmp_path: Path) -> None:
    file = write(tmp_path, sites=[{k: v for k, v in site.items() if k != "hardware"} for site in SITES])
    assert "No times: write hardware: {tflops: ...} for north, south, or run a round to measure it" in run(file)
    with pytest.raises(FederationError, match="no predicted time to draw"):
        run(file, "--to", str(tmp_path / "plan.svg"))
    with pytest.raises(FederationError, match=r"plan\.pdf: write a file name that ends in \.svg or \.html"):
        run(file, "--to", str(tmp_path / "plan.pdf"))
