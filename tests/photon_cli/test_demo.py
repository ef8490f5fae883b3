"""photon demo: what people change in its file stays."""

from pathlib import Path

import pytest

from photon_cli.demo import write_demo
from photon_core.errors import FederationError
from schemas.reading.load import load_federation


def test_a_changed_file_keeps_its_changes_but_for_the_rounds(tmp_path: Path) -> None:
    sites = write_demo(tmp_path, 2)
    file = tmp_path / "federation.yaml"
    assert [site.name for site in load_federation(file).sites] == sites
    file.write_text(file.read_text().replace("  steps: 60", "  steps: 30  # mine"))
    write_demo(tmp_path, 7)
    federation = load_federation(file)
    assert (federation.rounds.count, federation.local.steps) == (7, 30)
    assert "# mine" in file.read_text()

    changed = (
        file.read_text()
        .replace("rounds: {count: 7, ", "rounds: {quorum: 2, count: 7, ")
        .replace(", quorum: 3", "")
    )
    file.write_text(changed)
    with pytest.raises(
        FederationError, match=r"is not as the demo wrote it\. To continue, write: photon run .*federation\.yaml"
    ):
        write_demo(tmp_path, 9)
    assert file.read_text() == changed
