"""One embedded run through the command line's code, with the time of every event.

    python -m benchmarks.timed FEDERATION.yaml RESULT.json

It is a separate process, because Prefect's server address must be set before Prefect is imported.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Mark = dict[str, Any]


@dataclass
class Recorder:
    """A display that shows nothing and records the embedded server's start and every event of the run."""

    zero: float = field(default_factory=time.perf_counter)
    server_ready: float | None = None
    events: list[Mark] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def now(self) -> float:
        return time.perf_counter() - self.zero

    def say(self, text: str) -> None:
        print(text, flush=True)

    def activity(self, name: str, text: str, done: int = 0, total: int | None = None) -> None:
        pass

    def finish(self, name: str) -> None:
        from photon_cli.run import SERVER

        if name == SERVER:
            self.server_ready = self.now()

    def listen(self, event: Any) -> None:
        _, _, state = event.kind.label.partition("step.")
        if state in ("started", "finished", "failed"):
            step, _ = event.step
            with self._lock:
                self.events.append(
                    {"at": self.now(), "t": event.round, "step": step, "site": event.member, "state": state}
                )


def run(file: Path, recorder: Recorder) -> dict[str, Any]:
    """Run all rounds, of a tree also those of the federations below. Returns the recorded times and the first
    file's manifests."""
    from photon_cli.run import run_flow
    from photon_cli.tree import check_places, check_sites, read_world
    from photon_core.run.history import history
    from photon_core.run.run import run_of

    world = read_world(file)
    check_places(world)
    check_sites(world)
    started = recorder.now()
    run_flow(world, None, recorder, recorder.listen)
    ended = recorder.now()
    rounds = history(run_of(world.federation))
    return {
        "started": started,
        "server_ready": recorder.server_ready,
        "ended": ended,
        "events": recorder.events,
        "rounds": [manifest.model_dump(mode="json", exclude={"model", "optimizer"}) for manifest in rounds],
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]), Recorder())))
