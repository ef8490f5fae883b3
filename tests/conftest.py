"""What the tests share: small federations on real text, one Prefect server and one fork server a session."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from photon_core.jobs.telemetry import telemetry_off
from schemas.federation import Federation
from schemas.view import view_of
from tests.database import give_database

pytest_plugins = ["tests.browser", "tests.s3_server"]

telemetry_off()

# Streaming's datasets leave descriptors open in the process that reads them: elsewhere a child, here all tests'.
DESCRIPTORS = 4096
SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
if SOFT != resource.RLIM_INFINITY and SOFT < DESCRIPTORS:
    most = DESCRIPTORS if HARD == resource.RLIM_INFINITY else min(DESCRIPTORS, HARD)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, HARD))

TINY: dict[str, Any] = {
    "run": "tiny",
    "store": "store",
    "recipe": None,
    "tokenizer": "bytes",
    "seed": 3,
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 257, "max_seq_len": 64},
    "rounds": {"count": 2, "report_every": None},
    "local": {
        "steps": 3,
        "batch_size": 4,
        "optimizer": {"lr": 2e-3},
        "schedule": {"warmup_steps": 2, "total_steps": 20},
        "device": "cpu",
    },
    "data": {"evaluation_sequences": 8},
}


def topics(part: int, parts: int) -> list[str]:
    """A share of the documentation topics that come with Python: real text, the same everywhere."""
    from pydoc_data.topics import topics as texts

    return [texts[name] for name in sorted(texts)[part::parts]]


def write_text(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def write_file(
    folder: Path, sites: tuple[str, ...] = ("a", "b"), pools: dict[str, str] | None = None, **sections: Any
) -> Path:
    """A tiny federation's file and text in a folder; keywords override its sections, `pools` are the sites' work
    pools. Returns the file."""
    for number, site in enumerate(sites):
        write_text(folder / "text" / f"{site}.jsonl", topics(number, max(8, len(sites))))
    data = {
        **merge(TINY, sections),
        "sites": [
            {
                "name": site,
                "pool": (pools or {}).get(site),
                "state_dir": f"sites/{site}",
                "streams": [{"name": "text", "source": f"text/{site}.jsonl"}],
            }
            for site in sites
        ],
    }
    file = folder / "federation.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def prepare_file(file: Path) -> Federation:
    """The federation of a file, with every site's text prepared."""
    from photon_core.data.prepare import prepare_site
    from schemas.reading.load import load_federation

    federation = load_federation(file)
    for site in federation.sites:
        prepare_site(view_of(federation, site.name))
    return federation


@pytest.fixture
def write_federation(tmp_path: Path) -> Callable[..., Path]:
    """write_file, in a subfolder of the test's own."""

    def write(sites: tuple[str, ...] = ("a", "b"), folder: str = "fed", **sections: Any) -> Path:
        return write_file(tmp_path / folder, sites, **sections)

    return write


@pytest.fixture
def prepared(write_federation: Callable[..., Path]) -> Callable[..., Federation]:
    """As write_federation, with every site's text prepared; returns the federation."""

    def make(*args: Any, **sections: Any) -> Federation:
        return prepare_file(write_federation(*args, **sections))

    return make


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server for the session, and the fork server that flows train with."""
    from photon_cli.prefect.embedded import EmbeddedServer
    from photon_cli.run import flush
    from photon_core.jobs.sharing import serve
    from photon_core.training.entry import PRELOAD

    with EmbeddedServer(give_database(tmp_path_factory.mktemp("prefect"))) as server, serve(PRELOAD) as shared:
        import prefect.context  # noqa: F401  reads its settings now, not while a test has changed the environment

        os.environ.update(shared)
        server.wait()
        yield server.url
        flush()
        for name in shared:
            del os.environ[name]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show how long recovery took, which the tests of failures print."""
    passed = terminalreporter.stats.get("passed", [])
    printed = "\n".join(text for report in passed for title, text in report.sections if "stdout" in title)
    if lines := [line for line in printed.splitlines() if line.startswith("recovery: ")]:
        terminalreporter.section("times to recovery")
        terminalreporter.write_line("\n".join(lines))
