"""Run by test_automations.py: a server with all its services, a federation's automations, and what they do.

Prints one JSON object. A separate process, because a process knows only one Prefect server.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from flows.deploy.catalogue import LEFT_OUT, plan
from photon_cli.prefect.embedded import EmbeddedServer
from schemas.reading.load import load_federation

WAIT_SECONDS = 120.0
REASON = 'train: "killed" <!channel> [x](https://x.example)' + 2000 * "y"
posts: list[str] = []


class Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        posts.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def eventually(true: Callable[[], bool]) -> bool:
    limit = time.monotonic() + WAIT_SECONDS
    while not (met := true()) and time.monotonic() < limit:
        time.sleep(0.5)
    return met


def main(file: Path, home: Path) -> None:
    hook = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    notify = {"block": "webhook/hook"}
    federation = load_federation(file, {"deploy.notify": notify, "deploy.schedule": "* * * * *"})
    with EmbeddedServer(home, services=True) as server:
        server.wait()
        from prefect.blocks.webhook import Webhook

        url = f"http://127.0.0.1:{hook.server_port}/hook"
        Webhook(url=url, headers={"Content-Type": "application/json"}).save("hook")
        print(json.dumps(observe(federation)))


def observe(federation: Any) -> dict[str, Any]:
    from prefect.client.orchestration import get_client
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker
    from prefect.states import Completed, Failed, Pending, Running

    from flows.deploy.apply import apply

    whole = plan(federation)
    quick = [  # the least that Prefect takes
        replace(automation, trigger={**automation.trigger, "within": 10.0}) for automation in whole.automations[:2]
    ]
    apply(replace(whole, automations=(*quick, *whole.automations[2:])))
    with get_client(sync_client=True) as client:

        def start(name: str, tag: str) -> Any:
            deployment = client.read_deployment_by_name(name)
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters={"t": 1}, tags=[tag], name=f"{name} of {tag}"
            )
            client.set_flow_run_state(run.id, Running(), force=True)
            return run

        def heartbeat(run: Any, tag: str) -> None:
            related = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}]
            resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
            assert emit_event("prefect.flow-run.heartbeat", resource, related=related)

        def state(run: Any) -> Any:
            return client.read_flow_run(run.id).state

        tag = f"run:{federation.run}"
        site = f"site-round/{federation.run}-a"
        silent, done, strange = start(site, tag), start(site, tag), start(site, tag)
        heartbeat(silent, tag)
        heartbeat(done, tag)
        heartbeat(strange, "run:another")
        EventsWorker.instance().wait_until_empty()
        client.set_flow_run_state(done.id, Completed(), force=True)
        stuck = client.create_flow_run_from_deployment(
            client.read_deployment_by_name(f"federated-run/{federation.run}").id, tags=[tag]
        )
        client.set_flow_run_state(stuck.id, Pending(), force=True)
        failed = start(f"federated-round/{federation.run}", tag)
        client.set_flow_run_state(failed.id, Failed(message='1 of 2 sites: "a" is missing'), force=True)
        emit_event(
            LEFT_OUT,
            {"prefect.resource.id": f"photon.site.{federation.run}.a"},
            payload={
                "site": "a",
                "round": 7,
                "reason": 'train: "killed" <!channel> [x](https://x.example)' + 2000 * "y",
            },
        )
        EventsWorker.instance().wait_until_empty()
        eventually(lambda: state(silent).is_crashed())
        eventually(lambda: state(stuck).is_crashed())
        eventually(lambda: len(posts) >= 2)
        scheduled = lambda: [r for r in client.read_flow_runs() if r.auto_scheduled]  # noqa: E731
        eventually(lambda: bool(scheduled()))
        return {
            "dead": state(silent).name,
            "message": state(silent).message,
            "stuck": (state(stuck).name, state(stuck).message),
            "done": state(done).name,
            "strange": state(strange).name,
            "posts": sorted(posts),
            "scheduled": bool(scheduled()),
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
