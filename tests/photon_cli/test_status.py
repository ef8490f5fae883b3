"""photon status: from the store alone, and with what a Prefect server adds."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from photon_cli.prefect import live
from photon_cli.prefect.live import age, ask
from photon_cli.status import Status, runs_of
from photon_cli.tree import alone
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.reading.world import load_world
from tests.worlds import write_world

KEYS = {"version", "run", "store", "committed", "trained", "count", "seconds_left", "server", "opened",
        "coordinator", "sites", "rounds"}  # fmt: skip


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def look(file: Path) -> Status:
    world = alone(load_federation(file), file)
    return Status(world, runs_of(world), file.parent / ".prefect")


def test_from_the_store_alone(committed: Callable[..., Path]):
    status = look(committed(2, rounds={"count": 5}))
    facts = status.facts()
    assert set(facts) == KEYS and facts["version"] == 1
    assert (facts["committed"], facts["count"], facts["seconds_left"]) == (2, 5, 3 * 12.0)
    assert [site["state"] for site in facts["sites"]] == ["no update yet", "no update yet"]
    assert status.lines()[0].endswith("about 36 s left") and "no Prefect server answers" in status.lines()[1]


def test_a_finished_run_asks_nobody(committed: Callable[..., Path]):
    status = look(committed(2, rounds={"count": 2}))
    assert status.finished and status.facts()["sites"] == [] and len(status.lines()) == 1


def test_noise_is_shown_with_its_strength_and_as_no_guarantee(committed: Callable[..., Path]):
    noise = {"clip_norm": 0.25, "noise_multiplier": 0.5}
    status = look(committed(1, update=noise, server={"noise_multiplier": 2.0}))
    assert status.lines()[-2:] == [
        "noise on each site's change: noise_multiplier 0.5 at clip_norm 0.25: noise, not a guarantee",
        "noise on the mean of the changes: noise_multiplier 2 at clip_norm 0.25: noise, not a guarantee",
    ]


def test_noise_of_a_federation_below_is_shown_with_its_path(tmp_path: Path):
    world = load_world(write_world(tmp_path, region={"update": {"clip_norm": 1.0, "noise_multiplier": 0.5}}))
    lines = Status(world, runs_of(world), tmp_path / ".prefect").lines()
    text = "noise on each site's change: noise_multiplier 0.5 at clip_norm 1: noise, not a guarantee"
    assert lines[1:] == [f"north: {text}", f"south: {text}"]


def test_a_server_that_is_no_server_is_none(committed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert look(committed(1)).live is None

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"detail": "some other program"}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(f"http://127.0.0.1:{server.server_port}/api", "tiny", 1) is None
        server.shutdown()


def test_a_round_of_many_sites_is_more_than_one_answer():
    state = {"name": "Running", "type": "RUNNING"}
    tags = [["step:train", f"site:s{i}"] for i in range(450)]
    there = [{"id": str(i), "tags": tags[i], "state": state, "start_time": "x"} for i in range(450)]

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            from_here = there[asked["offset"] :][: asked["limit"]] if "task_runs" in self.path else []
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(from_here).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = ask(f"http://127.0.0.1:{server.server_port}/api", "tiny", 1)
        server.shutdown()
    assert found is not None and len(found.sites) == 450


def test_watching_without_a_terminal_is_lines_until_the_end(committed: Callable[..., Path]):
    file = committed(2, rounds={"count": 2})
    photon = Path(sys.executable).parent / "photon"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [photon, "status", file, "--watch"], capture_output=True, text=True, timeout=200, env=env
    )
    assert (done.returncode, done.stdout) == (0, "2 of 2 rounds\n")
    done = subprocess.run(
        [photon, "status", file, "--watch", "--json"], capture_output=True, text=True, timeout=200, env=env
    )
    assert json.loads(done.stdout)["committed"] == 2


def test_ages_are_of_any_zone():
    then = datetime.now(UTC) - timedelta(seconds=90)
    assert 89 < (age(then.isoformat()) or 0) < 100
    assert 89 < (age(then.isoformat().replace("+00:00", "Z")) or 0) < 100
    assert age("") is None


@pytest.mark.slow
def test_with_a_server_it_says_what_each_site_does(
    prefect_server: str, prepared: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
):
    """Looked at while round 1 trains, through the server's address alone."""
    monkeypatch.setenv("PREFECT_API_URL", f"{prefect_server}/api")  # Prefect may not have been imported before
    from flows.federated_run import federated_run

    monkeypatch.setattr(live, "TIMEOUT", 60.0)  # for a busy server; people do not wait for it
    federation = prepared(run="watched", rounds={"count": 1}, local={"steps": 1000})
    runner = threading.Thread(target=federated_run, args=(federation,))
    runner.start()
    seen: set[tuple[str, str, str]] = set()
    opened = ""
    while runner.is_alive() and len(seen) < 2:
        found = ask(f"{prefect_server}/api", "watched", 1)
        assert found is not None
        opened = opened or found.opened
        time.sleep(0.5)  # the server has to record what it is asked about
        seen |= {
            (d.site, d.step, d.state) for d in found.sites.values() if d.step == "train" and d.state == "Running"
        }
    runner.join(250)
    assert seen == {("a", "train", "Running"), ("b", "train", "Running")}
    assert age(opened) is not None
