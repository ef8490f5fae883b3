"""Current work of a federation's sites, from a few requests to a Prefect server. Never imports prefect."""

import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.deploy.pages import PAGE, pages
from photon_core.formatting import printable
from tasks.tags import SITE, STEP, tagged

TIMEOUT = 3.0  # seconds; `photon status` does not wait for an unreachable server
GOING = ("RUNNING", "PENDING", "SCHEDULED", "PAUSED", "CANCELLING")
BAD = ("FAILED", "CRASHED")
STEPS = ("validate", "train", "upload", "round", "fit", "evaluate")  # in their order in a round
COORDINATOR_STEPS = ("publish", "apply again", "aggregate", "sample sites", "open run")  # the last step first


@dataclass(frozen=True)
class Doing:
    """Current work of a site.

    Args:
        site: name of the site.
        step: name of the step: validate, train, upload, evaluate, or round (all, at a remote site); empty if none.
        state: Prefect's name of the state: Running, Completed, Failed, Late, ...; or the state by the store.
        percent: percentage of the local steps, during training.
        since: start of that state, UTC, ISO 8601; empty if unknown.
        message: message of a failed state.
    """

    site: str
    step: str = ""
    state: str = ""
    percent: float | None = None
    since: str = ""
    message: str = ""

    def facts(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Live:
    """Answer of a server.

    Args:
        url: URL of its API.
        opened: start of the running round, UTC, ISO 8601; empty if none runs.
        sites: current work by site name.
        coordinator: current step of the coordinator; empty if none.
    """

    url: str
    opened: str
    sites: dict[str, Doing]
    coordinator: str = ""


def server_url(home: Path) -> str | None:
    """URL of the server: PREFECT_API_URL, else that of an embedded run which runs beside the file."""
    named = os.environ.get("PREFECT_API_URL")
    if named:
        return named.rstrip("/")
    try:
        return (home / "address").read_text().strip()
    except OSError:
        return None


def ask(url: str, run: str, t: int) -> Live | None:
    """Current work in round t; None if no Prefect server answers at this URL."""
    import httpx

    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT, headers=_headers(), auth=_auth()) as client:
            flow_runs = {"tags": {"all_": [f"run:{run}", f"round:{t}"]}}
            rounds = _post(client, "flow_runs", {
                "flow_runs": {"tags": {"all_": [f"run:{run}"]}, "state": {"type": {"any_": list(GOING)}}},
                "flows": {"name": {"any_": ["federated-round"]}}, "sort": "START_TIME_DESC",
            })  # fmt: skip
            tasks = _post(client, "task_runs", {"flow_runs": flow_runs, "sort": "EXPECTED_START_TIME_DESC"})
            if rounds and not tasks:  # a scheduled round has no tag with its number
                mine = {"id": {"any_": [rounds[0]["id"]]}}
                tasks = _post(client, "task_runs", {"flow_runs": mine, "sort": "EXPECTED_START_TIME_DESC"})
            ids = [task["id"] for task in tasks if _step(task) == "train"]
            progress = _post(client, "artifacts", {
                "artifacts": {"type": {"any_": ["progress"]}, "task_run_id": {"any_": ids}},
                "sort": "CREATED_DESC",
            }) if ids else []  # fmt: skip
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    opened = str(rounds[0].get("start_time") or "") if rounds else ""
    return Live(url, opened, _sites(tasks, progress), _coordinator(tasks))


def _post(client: Any, what: str, filters: dict[str, Any]) -> list[dict[str, Any]]:

    def read(offset: int) -> list[dict[str, Any]]:
        answer = client.post(f"/{what}/filter", json={**filters, "limit": PAGE, "offset": offset})
        answer.raise_for_status()
        page = answer.json()
        if not isinstance(page, list):
            raise TypeError("another program answers")
        return page

    return pages(read)


def _headers() -> dict[str, str]:
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _auth() -> tuple[str, str] | None:
    user, separator, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    return (user, password) if separator else None


def _sites(tasks: list[dict[str, Any]], progress: list[dict[str, Any]]) -> dict[str, Doing]:
    """For each site, the running step, else the last finished one."""
    percents = {artifact.get("task_run_id"): artifact.get("data") for artifact in reversed(progress)}
    best: dict[str, tuple[tuple[bool, int], Doing]] = {}
    for task in tasks:
        site, step = tagged(task.get("tags") or [], SITE), _step(task)
        state = task.get("state") or {}
        if not site or step not in STEPS or not (task.get("start_time") or state.get("type") == "FAILED"):
            continue
        percent = percents.get(task["id"])
        doing = Doing(
            site=site,
            step=step,
            state=printable(str(state.get("name", ""))),
            percent=float(percent) if isinstance(percent, int | float) and step == "train" else None,
            since=str(state.get("timestamp") or ""),
            message=printable(str(state.get("message") or ""), 300) if state.get("type") in BAD else "",
        )
        rank = (state.get("type") in GOING and step != "round", STEPS.index(step))
        if site not in best or rank > best[site][0]:
            best[site] = (rank, doing)
    return {site: doing for site, (_, doing) in best.items()}


def _coordinator(tasks: list[dict[str, Any]]) -> str:
    going = {_step(task) for task in tasks if (task.get("state") or {}).get("type") == "RUNNING"}
    return next((step for step in COORDINATOR_STEPS if step in going), "")


def _step(task: dict[str, Any]) -> str:
    return tagged(task.get("tags") or [], STEP)


def age(since: str) -> float | None:
    """Seconds since an ISO 8601 time; None if the text is not one."""
    try:
        then = datetime.fromisoformat(since.replace("Z", "+00:00"))
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (datetime.now(UTC) - then).total_seconds())
