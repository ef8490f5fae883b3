"""photon gc as a user sees it: lists first, then removes; a request for a removed file names it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from photon_cli.gc import collect
from photon_cli.main import app
from photon_cli.status import show_status
from photon_cli.tree import alone
from photon_core.errors import FederationError, PhotonError
from photon_core.export.model import open_committed
from photon_core.run.opening import open_run
from photon_core.run.run import run_of
from photon_core.run.start import Initial
from schemas.reading.load import load_federation
from tests.photon_core.run.test_garbage import data, go_on, theta


@pytest.fixture
def file(write_federation: Callable[..., Path], tmp_path: Path) -> Path:
    """A federation with rounds 0 to 3 in its store."""
    from safetensors.numpy import save_file

    from photon_core.data.tokenizer import load_tokenizer

    file = write_federation()
    federation = load_federation(file)
    save_file(theta(0), tmp_path / "m.safetensors")
    run = run_of(federation)
    open_run(run, federation, load_tokenizer("bytes").sha256, lambda: Initial([tmp_path / "m.safetensors"]))
    for t in range(1, 4):
        go_on(run, t)
    return file


def test_gc_says_first_then_does(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation = load_federation(file)
    run = run_of(federation)
    whole = data(run)
    collect(federation, 1, None, "1d", dry_run=True, quiet=True)
    said = capsys.readouterr().out
    assert "kept whole: round 3" in said and "round 2: 4 files, " in said and "would remove 9 files" in said
    assert data(run) == whole
    collect(federation, 1, None, "1d", dry_run=False, quiet=True)
    assert "removed 9 files" in capsys.readouterr().out
    assert data(run) == {3: 4}
    collect(federation, 1, None, "1d", dry_run=False, quiet=True)
    assert "nothing to remove" in capsys.readouterr().out

    show_status(alone(federation, Path("federation.yaml")), {}, as_json=False, watch=False)
    assert "3 of 2 rounds" in capsys.readouterr().out
    assert open_committed(federation, None)[1].round == 3
    with pytest.raises(PhotonError, match="round 1's model was removed by photon gc"):
        open_committed(federation, 1)


def test_an_age_is_a_duration(file: Path) -> None:
    with pytest.raises(FederationError, match="--orphan-age 'soon' is not a duration"):
        collect(load_federation(file), 1, None, "soon", dry_run=True, quiet=True)


@pytest.mark.parametrize("option", ["--orphan-age", "--litter-age"])  # the latter is the name of earlier versions
def test_both_names_of_the_age_are_read(option: str, file: Path) -> None:
    done = CliRunner().invoke(app, ["gc", str(file), option, "soon"])
    assert isinstance(done.exception, FederationError) and "'soon' is not a duration" in str(done.exception)
    assert "--litter-age" not in CliRunner().invoke(app, ["gc", "--help"]).output
