"""photon compare: only what differs, curves side by side."""

from collections.abc import Callable
from pathlib import Path

import pytest

from photon_cli.compare import compare
from photon_core.errors import FederationError


@pytest.fixture
def two(committed: Callable[..., Path]) -> tuple[Path, str]:
    one = committed(3, folder="one", run="one", local={"steps": 3})
    other = committed(2, start=40.0, folder="other", run="other", local={"steps": 6}, sites=("a", "b", "c"))
    return one, f"{other.parent}/store/other"


def test_the_terminal_shows_only_the_differing_keys(two: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    compare([str(name) for name in two], None, quiet=True)
    lines = {line.split("  ")[0]: line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    assert lines["perplexity, best"] == ["6.67", "20.00"]
    assert lines["rounds"] == ["3", "2"]
    assert lines["local.steps"] == ["3", "6"]
    assert not any("batch_size" in key or key == "run" for key in lines)
    assert any(key.startswith("sites.c.") for key in lines)


def test_the_page_has_a_curve_for_each(two: tuple[Path, str], tmp_path: Path):
    page = tmp_path / "folder" / "page.html"
    compare([str(name) for name in two], page, quiet=True)
    text = page.read_text("utf-8")
    assert 'id="perplexity-round"' in text and 'id="perplexity-tokens"' in text
    assert "one 6.667, other 20" in text and "<td>local.steps</td><td>3</td><td>6</td>" in text


@pytest.mark.parametrize("runs", [["a.yaml"], ["/nowhere/run", "/nowhere/run"], ["run", "run"]])
def test_wrong_use_says_what_to_write(runs: list[str]):
    with pytest.raises(FederationError, match=r"photon compare RUN RUN|write a federation file, or <store>/<run>"):
        compare(runs, None, quiet=True)
