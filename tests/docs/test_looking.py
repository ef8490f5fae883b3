"""The commands of docs/looking.md, as they stand there."""

from collections.abc import Callable
from pathlib import Path

from tests.docs import commands


def test_the_pages_commands_run(write_federation: Callable[..., Path]):
    from photon_core.run.provenance import federation_sha256
    from photon_core.run.run import run_of
    from schemas.manifests import RunManifest
    from schemas.reading.load import load_federation

    file = write_federation()
    federation = load_federation(file)
    run_of(federation).create_run(
        RunManifest(
            run=federation.run, created="2026-01-01T00:00:00+00:00", federation=federation.model_dump(mode="json"),
            federation_sha256=federation_sha256(federation), tokenizer_sha256="0" * 64, versions={},
        )
    )  # fmt: skip
    found = commands.commands("docs/looking.md")
    assert len(found) == 3
    for command in found:
        done = commands.run(command, file.parent)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (file.parent / "report.html").exists()
