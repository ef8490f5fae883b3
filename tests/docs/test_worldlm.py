"""docs/worldlm.md: its files are a tree, and its commands train one from end to end on this machine."""

import json
from pathlib import Path

import pytest
import yaml

from photon_cli.prefect.embedded import prefect_home
from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.reading.world import World, load_world
from tests.conftest import TINY, merge, topics, write_text
from tests.database import give_database
from tests.docs.commands import commands, run
from tests.docs.test_pages import YAML

ROOT = Path(__file__).parents[2]
PAGE = "docs/worldlm.md"
SMALL = {name: TINY[name] for name in ("model", "local", "data")}


def write_pages_tree(folder: Path, small: bool) -> Path:
    """The page's files, and asia.yaml, like europe.yaml with one site; with a small model, one round of each."""
    for block in YAML.findall((ROOT / PAGE).read_text("utf-8")):
        name = block.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(block)
    europe = (folder / "europe.yaml").read_text()
    asia = yaml.safe_load(europe.replace("europe", "asia").replace("berlin", "osaka"))
    (folder / "asia.yaml").write_text(yaml.safe_dump(asia | {"sites": asia["sites"][:1]}))
    for file in folder.glob("*.yaml") if small else []:
        data = merge(yaml.safe_load(file.read_text()), SMALL | {"recipe": None})
        data["model"] = SMALL["model"] | {"n_layers": 2}
        data["rounds" if "federations" in data else "worldlm"] |= {
            "count" if "federations" in data else "rounds": 1
        }
        file.write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "world.yaml"


def test_the_pages_files_are_a_tree(tmp_path: Path) -> None:
    world = load_world(write_pages_tree(tmp_path, small=False))
    steps = world.federation.rounds.count * world.steps
    assert world.federation.local.schedule.total_steps == steps == 4000, (
        "the whole schedule, as its comment has it"
    )
    assert world.children["europe"].federation.recipe == world.federation.recipe == "unlike-sites"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_commands_train_a_tree(tmp_path: Path) -> None:
    file = write_pages_tree(tmp_path, small=True)
    for number, site in enumerate(("berlin", "lyon", "osaka")):
        write_text(tmp_path / "text" / f"{site}.jsonl", topics(number, 8))
    give_database(prefect_home(file))
    outputs = {}
    for command in commands(PAGE)[:8]:  # tests/flows/test_deployed_tree.py runs the others
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        outputs[command] = done.stdout
    world = load_world(file)
    check_run(world, outputs["photon run world.yaml"])
    assert "\n    osaka " in outputs["photon status world.yaml"]
    assert "europe/berlin, as trained: " in outputs["photon evaluate world.yaml --member europe/berlin --trained"]
    assert (tmp_path / "europe-model" / "config.json").exists()
    facts = json.loads(run("photon status world.yaml --json", tmp_path).stdout)
    assert [(node["node"], node["round"], node["entered"]) for node in facts["nodes"]] == [
        ("world", 1, None), ("europe", 2, 1), ("europe/berlin", 2, None), ("europe/lyon", 2, None),
        ("asia", 2, 1), ("asia/osaka", 2, None),
    ]  # fmt: skip
    assert facts["sites"] == [] and facts["nodes"][0]["perplexity"] == facts["rounds"][1]["metrics"]["perplexity"]


def check_run(world: World, output: str) -> None:
    """The tree is trained, and the command has shown each round of each federation, and the tree's table."""
    _, last = history(run_of(world.federation))
    assert set(last.updates) == set(last.evaluations) == {"europe", "asia"} and not last.incidents
    lines = output.splitlines()
    for name, sites in ("europe", 2), ("asia", 1):
        chain = history(run_of(world.children[name].federation))
        assert [manifest.kind for manifest in chain] == ["train", "entry", "train"]
        assert any(line.startswith(f"{name}, round 2: {sites}/{sites} sites, perplexity ") for line in lines)
        assert last.evaluations[name]["tokens"] == sum(one["tokens"] for one in chain[2].evaluations.values())
    assert any(line.startswith("round 1/1: 2/2 members, perplexity ") for line in lines)
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("node ")) + 1 :]
    assert [line.split()[0] for line in table[:6]] == ["world", "europe", "berlin", "lyon", "asia", "osaka"]
    assert table[0].split()[-2:] == ["3", f"{3 * 3 * 4 * 64:,}"], "steps and tokens"
