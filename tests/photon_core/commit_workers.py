"""Processes that race for commits or die inside them; run as a script by test_commit.py, light enough to fork."""

import json
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from photon_core.aggregation.aggregate import aggregate
from photon_core.aggregation.engine.inputs import Limits
from photon_core.errors import StoreConflict
from photon_core.run.run import Run, model_sha256
from photon_core.store.store import Store
from schemas.manifests import RoundManifest
from schemas.sections.server import Server

WATCHED = ("open", "write", "fsync", "link", "unlink", "mkdir", "close")


def manifest(t: int, previous: str, by: int) -> RoundManifest:
    return RoundManifest(
        run="run",
        round=t,
        model_sha256=model_sha256([]),
        model=[],
        left_out={f"site{by}": f"{by:02d}" * 5000},
        federation_sha256="",
        previous_sha256=previous,
        created="",
        versions={},
    )


def race(folder: str, processes: int, rounds: int) -> None:
    """Every process tries to commit every round; prints who says that it won, round by round."""
    context = get_context("fork")
    barrier = context.Barrier(processes)
    won = context.SimpleQueue()

    def work(number: int) -> None:
        run = Run(Store(folder), "run")
        for t in range(rounds):
            mine = manifest(t, run.round_sha256(t - 1) if t else "", number)
            barrier.wait()
            try:
                run.commit_round(mine)
                won.put((t, number))
            except StoreConflict:
                pass
            barrier.wait()

    children = [context.Process(target=work, args=(n,)) for n in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    winners: list[list[int]] = [[] for _ in range(rounds)]
    while not won.empty():
        t, number = won.get()
        winners[t].append(number)
    print(json.dumps({"codes": [c.exitcode for c in children], "winners": winners}))


def die_at(call: int) -> None:
    """Kill this process in front of its n-th call that changes the disk."""
    left = call

    def hook(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return called

    for name in WATCHED:
        setattr(os, name, hook(getattr(os, name)))


def kills(folder: str) -> None:
    """Aggregate and commit round 1, killed before the first, second, ... call, until one process reaches the end.

    Prints what a reader sees after each death.
    """
    seen = []
    for call in range(1000):
        child = os.fork()
        if not child:
            run = Run(Store(folder), "run")
            base = run.round(0)
            assert base is not None
            update = run.update(1, "site", 1)
            assert update is not None
            die_at(call)
            try:
                server = Server(optimizer="nesterov", momentum=0.9)
                result = aggregate(run, 1, {"site": update}, server, limits=Limits(threads=0))
                filled = manifest(1, run.round_sha256(0), 0).model_copy(
                    update={
                        "model": result.model,
                        "optimizer": result.optimizer,
                        "model_sha256": model_sha256(result.model),
                    }
                )
                run.commit_round(filled)
            except StoreConflict:
                os._exit(3)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        reader = Run(Store(folder), "run")
        round_1 = reader.round(1)
        for entry in [*(round_1.model if round_1 else []), *(round_1.optimizer if round_1 else [])]:
            reader.store.check(entry, reader.round_dir(1))
        seen.append((os.waitstatus_to_exitcode(status), reader.latest(), round_1.model_sha256 if round_1 else ""))
        if os.WIFEXITED(status):
            break
    print(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "race":
        race(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        kills(sys.argv[2])
