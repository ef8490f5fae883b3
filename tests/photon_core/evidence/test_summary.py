"""A round's rows, and the table that `photon status` makes of them."""

from io import StringIO

from rich.console import Console

from photon_cli.tables import rounds_table
from photon_core.evidence.summary import summary, whole
from schemas.manifests import RoundManifest, UpdateRef


def manifest() -> RoundManifest:
    said = {
        "train_loss": 1.5,
        "perplexity": 1.0,
        "seconds": 3.0,
    }  # its perplexity is not read
    update = UpdateRef(attempt=1, sha256="0", tokens=640, weight=1.0, bytes=77, steps=5, metrics=said)
    return RoundManifest(
        run="r", round=1, model_sha256="0", model=[], sampled=["a"], updates={"a": update}, federation_sha256="0",
        metrics={"train_loss": 2.0, "perplexity": 9.0}, seconds={"sites": 1.5}, created="", versions={},
        evaluations={"a": {"loss": 2.0, "perplexity": 8.0, "tokens": 1.0}}, paused=["b"],
    )  # fmt: skip


def test_a_row_for_each_site_and_one_for_the_round() -> None:
    """The keys are those of `photon status --json`, which stay."""
    assert summary(manifest()) == [
        {
            "round": 1, "site": "a", "tokens": 640, "train loss": 1.5, "validation perplexity": 8.0,
            "bytes sent": 77, "seconds": 3.0, "left out": "", "not evaluated": "", "incidents": "",
        },
        {
            "round": 1, "site": "b", "tokens": 0, "train loss": None, "validation perplexity": None,
            "bytes sent": 0, "seconds": None, "left out": "paused", "not evaluated": "", "incidents": "",
        },
    ]  # fmt: skip
    assert whole(manifest()) == {
        "round": 1, "tokens": 640, "train loss": 2.0, "validation perplexity": 9.0, "bytes sent": 77,
        "seconds": 1.5,
    }  # fmt: skip


def test_the_table_of_status() -> None:
    console = Console(width=100, file=(out := StringIO()), color_system=None)
    console.print(rounds_table([manifest()]))
    assert [" ".join(line.split()) for line in out.getvalue().splitlines()[:6]] == [
        "validation",
        "round site tokens train loss perplexity bytes sent seconds",
        "1 a 640 1.500 8.00 77 B 3.0",
        "1 b 0 - - 0 B -",
        "paused",
        "1 all 640 2.000 9.00 77 B 1.5",
    ]
