"""README, concepts and recipes: their commands run, in order, on one tiny federation; their YAML is valid."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from photon_cli.prefect.embedded import prefect_home
from schemas.reading.load import load_federation
from tests.database import give_database
from tests.docs.commands import ROOT, adapted, commands, run

PAGES = ("README.md", "docs/concepts.md", "docs/recipes.md")
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_runs(write_federation: Callable[..., Path]) -> None:
    hardware = {"tflops": 0.1, "memory_gb": 8}
    file = write_federation(("a",), rounds={"count": 1})
    give_database(prefect_home(file))
    data = yaml.safe_load(file.read_text())
    data["sites"][0] |= {"hardware": hardware, "link": {"up": 1}}
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    found = [adapted(command, {"S": "a"}) for page in PAGES for command in commands(page)]
    assert len(found) >= 9
    for command in found:
        done = run(command, file.parent)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert (file.parent / "model" / "config.json").exists() and (file.parent / "taken" / "README.md").exists()
    said = json.loads((file.parent / "store" / data["run"] / "rounds" / "000001" / "round.json").read_text())
    names = {name.partition("/")[0] for name in (*said["metrics"], *said["updates"]["a"]["metrics"])}
    explained = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    assert not [name for name in sorted(names) if f"`{name}" not in explained]


def test_every_yaml_block_is_part_of_a_federation_file(write_federation: Callable[..., Path]) -> None:
    file = write_federation(("a", "b"))
    whole = yaml.safe_load(file.read_text())
    blocks = [block for page in PAGES for block in YAML.findall((ROOT / page).read_text("utf-8"))]
    assert len(blocks) >= 7
    for block in blocks:
        file.write_text(yaml.safe_dump(whole | yaml.safe_load(block)))
        load_federation(file)


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_to_pages_and_headings() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")):
        for link, anchor in re.findall(r"\]\(([^)#:]*\.md|)(?:#([^)]*))?\)", page.read_text("utf-8")):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(target), f"{page.name} links to {link}#{anchor}"
