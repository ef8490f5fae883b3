"""docs/deploy.md as written: a server with a password, four sites on S3, their credentials in a block, rounds."""

import base64
import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from photon_core.run.history import history
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.view import view_of
from tests.conftest import TINY, merge, topics
from tests.database import give_database
from tests.docs import commands
from tests.federations import attempts_of
from tests.flows.deployment import eventually
from tests.s3_server import SECRETS, FaultProxy

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("prefect_server")]
PAGE = "docs/deploy.md"
SITES = ("berlin", "lyon", "porto", "turin")
BLOCK = {"aws_access_key_id": "AKIAFROMTHEBLOCK0001", "aws_secret_access_key": "out/of+a/block"}
SCREENSHOT = Path(__file__).parents[2] / "build" / "screenshots" / "round.png"


class Notes:
    """The federation of the page, on a separate server."""

    def __init__(self, folder: Path, federation: Federation, environment: dict[str, str], s3: FaultProxy) -> None:
        self.folder, self.federation, self.environment, self.s3 = folder, federation, environment, s3
        self.auth = environment["PREFECT_API_AUTH_STRING"]
        self.url = environment["PREFECT_API_URL"].removesuffix("/api")

    def command(self, number: int, **here: str) -> str:
        """The page's command of this number, with the names of this test in it."""
        return commands.adapted(commands.commands(PAGE)[number - 1], here)

    def run(self, command: str) -> str:
        done = commands.run(command, self.folder, self.environment, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, body: Any = None, auth: str = "", csrf: str = "") -> Any:
        """A request of the server, as the UI makes it."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}", data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Prefect-Csrf-Client": "test", "Prefect-Csrf-Token": csrf,
                     "Authorization": "Basic " + base64.b64encode((auth or self.auth).encode()).decode()},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def csrf(self) -> str:
        return str(self.ask("csrf-token?client=test")["token"])

    def start_round(self) -> None:
        self.run(self.command(10))

    def committed(self, t: int) -> Any:
        run = run_of(self.federation)
        return eventually(lambda: run.round(t), f"round {t} is committed", every=0.5)


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> str:
    import s3fs

    s3fs.S3FileSystem(endpoint_url=s3_endpoint).mkdir("notes-of-all")
    return "notes-of-all"


@pytest.fixture(scope="module")
def notes(bucket: str, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notes]:
    """What the page's first nine commands make."""
    folder = tmp_path_factory.mktemp("notes")
    proxy = FaultProxy(s3_endpoint)
    federation = write(folder, bucket, proxy.url)
    environment = user_environment(folder)
    processes: list[subprocess.Popen[bytes]] = []
    notes = Notes(folder, federation, environment, proxy)

    def start(command: str, log: str, **more: str) -> None:
        processes.append(commands.start(command, folder, folder / log, {**environment, **more}))

    try:
        start(notes.command(2, **{"0.0.0.0": "127.0.0.1"}), "server.log")
        prepare_others(federation)
        eventually(lambda: notes.ask("health"), "the server answers")
        save_block(notes)
        assert "would create deployment site-round/notes-berlin" in notes.run(notes.command(5))
        assert "created deployment site-round/notes-berlin" in notes.run(notes.command(6))
        start(notes.command(7), "coordinator.log")
        notes.run(notes.command(8))
        start(notes.command(9), "berlin.log")
        for site in SITES[1:]:
            # joined like this they share the session's fork server: five that import torch would take a minute
            start(f"prefect worker start --pool photon-{site} --type process", f"{site}.log", **worker_settings())
        for log in ("coordinator", *SITES):
            eventually(lambda log=log: "started!" in (folder / f"{log}.log").read_text(), f"{log} works")
        yield notes
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
        proxy.stop()


def user_environment(folder: Path) -> dict[str, str]:
    """What the page's exports set, with a server on loopback; nobody's credentials of the store."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server, url, auth = (commands.commands(PAGE)[number] for number in (0, 2, 3))
    shown = commands.run(f"{server}; echo $PREFECT_SERVER_API_AUTH_STRING", folder).stdout.strip()
    assert len(shown) > 40
    here = {"http://server.example.org:4200/api": f"http://127.0.0.1:{port}/api", "photon:...": shown}
    exports = "; ".join(commands.adapted(command, here) for command in (url, auth))
    done = commands.run(f"{exports}; echo $PREFECT_API_URL; echo $PREFECT_API_AUTH_STRING", folder)
    api, given = done.stdout.split()
    assert given == shown
    return {
        "PREFECT_SERVER_API_AUTH_STRING": shown,
        "PREFECT_API_AUTH_STRING": given,
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_HOME": str(give_database(folder / "prefect")),
        "PREFECT_CLI_WRAP_LINES": "false",
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(folder),
    }


def worker_settings() -> dict[str, str]:
    from photon_cli.join import WORKER

    return WORKER


def write(folder: Path, bucket: str, endpoint: str) -> Federation:
    """The federation's file; the sites' text in the bucket."""
    import s3fs

    from schemas.reading.load import load_federation

    there = s3fs.S3FileSystem(endpoint_url=endpoint)
    for number, site in enumerate(SITES):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in topics(number, 8))
        there.pipe_file(f"{bucket}/text/{site}.jsonl", lines.encode())
    data = merge(TINY, {"run": "notes", "rounds": {"count": 9, "deadline": 900}, "local": {"steps": 5}})
    data |= {
        "store": f"s3://{bucket}/rounds",
        "storage": {"endpoint_url": endpoint, "block": "secret/s3"},
        "deploy": {"schedule": "0 0 1 1 *"},
        "sites": [
            {
                "name": site,
                "state_dir": str(folder / "state" / site),
                "streams": [{"name": "text", "source": f"s3://{bucket}/text/{site}.jsonl"}],
                "shards": f"s3://{bucket}/private/{site}",
            }
            for site in SITES
        ],
    }
    file = folder / "federation.yaml"
    file.write_text(yaml.safe_dump(data))
    return load_federation(file)


def prepare_others(federation: Federation) -> None:
    from photon_core.data.prepare import prepare_site

    for site in SITES[1:]:
        prepare_site(view_of(federation, site))


def save_block(notes: Notes) -> None:
    code = f"from prefect.blocks.system import Secret; Secret(value={BLOCK!r}).save('s3')"
    done = subprocess.run([sys.executable, "-c", code], env=commands.user(notes.environment), capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def first(notes: Notes) -> Any:
    """The manifest of round 1, which the page's last command asks for."""
    notes.s3.requests.clear()
    notes.start_round()
    return notes.committed(1)


def test_ten_commands() -> None:
    lines = "\n".join(commands.blocks(PAGE)).splitlines()
    assert [int(line.split("#")[1]) for line in lines if re.search(r" # \d+$", line)] == list(range(1, 11))


def test_nobody_gets_in_without_the_password_or_a_csrf_token(notes: Notes) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        notes.ask("flow_runs/filter", {}, auth="photon:guess", csrf=notes.csrf())
    assert refused.value.code == 401
    with pytest.raises(urllib.error.HTTPError) as refused:
        notes.ask("flow_runs/filter", {})
    assert refused.value.code == 403
    assert isinstance(notes.ask("flow_runs/filter", {}, csrf=notes.csrf()), list)


def test_a_round_over_s3_makes_the_model_of_an_embedded_run(notes: Notes, first: Any, tmp_path: Path) -> None:
    from flows.federated_run import federated_run

    assert set(first.updates) == set(first.evaluations) == set(SITES) and not first.left_out
    assert run_of(notes.federation).latest() == 1  # one round, and not one more
    data = notes.federation.model_dump()
    data |= {"store": str(tmp_path / "store"), "storage": {}}
    for site in data["sites"]:
        site["storage"] = {"endpoint_url": notes.s3.url}
    alone = Federation.model_validate(data)
    federated_run(alone, 1)
    assert history(run_of(alone))[1].model_sha256 == first.model_sha256


def test_credentials_come_from_the_block_and_are_seen_nowhere(notes: Notes, first: Any) -> None:
    users = [
        h for r in notes.s3.requests for h in r.headers.split("\r\n") if h.startswith(("Authorization", "auth"))
    ]
    assert [user for user in users if BLOCK["aws_access_key_id"] in user]
    kinds = ("flow_runs", "task_runs", "deployments", "artifacts", "logs", "work_pools")
    texts = [json.dumps(notes.ask(f"{kind}/filter", {"limit": 200}, csrf=notes.csrf())) for kind in kinds]
    texts += [log.read_text() for log in notes.folder.glob("*.log")]
    texts += [first.model_dump_json(), (notes.folder / "federation.yaml").read_text()]
    for secret in (*BLOCK.values(), SECRETS["AWS_SECRET_ACCESS_KEY"]):
        assert not [text for text in texts if secret in text]


@pytest.mark.usefixtures("first")
def test_a_site_is_rerun_before_the_round(notes: Notes) -> None:
    run = run_of(notes.federation)
    rerun = "photon rerun federation.yaml --round 2 --site lyon"
    assert "attempt 1 for round 2 is committed" in notes.run(rerun)
    before = run.update_sha256(2, "lyon", 1)
    assert "To train again, add --force" in notes.run(rerun)
    assert "attempt 2 for round 2 is committed" in notes.run(f"{rerun} --force")
    notes.start_round()
    second = notes.committed(2)
    attempts = {site: [update.attempt for update in attempts_of(run, 2, site)] for site in SITES}
    assert attempts == {"berlin": [1], "lyon": [1, 2], "porto": [1], "turin": [1]}
    assert run.update_sha256(2, "lyon", 1) == before and second.updates["lyon"].attempt == 2
    late = commands.run(rerun, notes.folder, notes.environment)
    assert late.returncode == 4 and "round 2 of run 'notes' is already committed" in late.stderr


@pytest.mark.usefixtures("first")
def test_the_ui_shows_a_node_for_each_site(notes: Notes, browser: "Browser") -> None:
    notes.start_round()
    newest = {"sort": "EXPECTED_START_TIME_DESC", "flows": {"name": {"any_": ["federated-round"]}}, "limit": 1,
              "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}  # fmt: skip

    def nodes() -> tuple[str, set[str]] | None:
        """The running round and the names in its graph, once it waits for its sites."""
        found = notes.ask("flow_runs/filter", newest, csrf=notes.csrf())
        if not found:
            return None
        graph = notes.ask(f"flow_runs/{found[0]['id']}/graph-v2")
        names = {node["label"] for _, node in graph["nodes"]}
        return (found[0]["id"], names) if {f"{site} / round" for site in SITES} <= names else None

    flow_run, _ = eventually(nodes, "the round's graph has a node for each site", every=0.5)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    password = base64.b64encode(notes.auth.encode()).decode()
    page.add_init_script(f"localStorage.setItem('prefect-password', '{password}')")
    page.goto(f"{notes.url}/runs/flow-run/{flow_run}", timeout=120_000)
    page.get_by_text("notes next round").first.wait_for(timeout=120_000)
    page.locator("canvas").first.wait_for(timeout=120_000)
    SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
    eventually(lambda: colours(page.screenshot(path=SCREENSHOT)) > 200, "the graph is drawn", every=0.5)
    page.close()


def colours(png: bytes) -> int:
    """How many different colours a picture has."""
    from io import BytesIO

    from PIL import Image

    return len(Image.open(BytesIO(png)).convert("RGB").getcolors(1 << 24))
