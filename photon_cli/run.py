"""photon run: the flows on this machine, with an embedded Prefect server that ends with them."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import TYPE_CHECKING

from photon_cli.prefect.embedded import EmbeddedServer, prefect_home
from photon_cli.progress import Display, display, follow, shown
from photon_cli.tree import check_begun, check_places, check_sites, check_whole
from photon_core.evidence.events import Listener
from photon_core.evidence.nodes import reached, rounds_of_tree
from photon_core.evidence.trackers import check_trackers
from photon_core.run.line import newest, rounds_left
from photon_core.run.run import run_of
from photon_core.run.start import check_start
from schemas.reading.world import World

if TYPE_CHECKING:
    from tasks.runtime import Runtime

SERVER = "Prefect server"


def run_embedded(world: World, rounds: int | None, quiet: bool) -> None:
    """Run rounds until the count is reached, then print the tables.

    Raises:
        FederationError, DataError: something is wrong or not prepared; nothing was started. Errors of the files
            come before data that is not prepared, which takes work to fix.
        PhotonError: the run failed; what was committed is kept.
    """
    federation = world.federation
    check_whole(world)
    check_places(world)
    check_begun(world)
    run = run_of(federation)
    latest = newest(run)
    if latest is not None and not rounds_left(federation, latest):
        show_result(world)
        print(f"all {latest.place} rounds are committed. To continue, raise rounds.count in {world.file}")
        if federation.local.schedule.name == "cosine":
            print("the learning rate stays at its final value, unless local.schedule.total_steps is larger")
        return
    for _, node in world.nodes(paused=False):
        check_trackers(node.federation)
    check_sites(world)
    if run.run_manifest() is None:
        check_start(federation)
    with display(quiet) as show:
        run_flow(world, rounds, show)
    show_result(world)


def run_flow(world: World, rounds: int | None, show: Display, *listeners: Listener) -> None:
    """Run rounds embedded. The listeners get every event."""
    with embedded(world, show, *listeners):
        from flows.federated_run import federated_run

        federated_run(world.federation, rounds)


@contextmanager
def embedded(world: World, show: Display, *listeners: Listener) -> Iterator["Runtime"]:
    """An embedded Prefect server and a fork server. They start in parallel and end with the block."""
    from tasks.runtime import runtime

    with (
        runtime(follow(show, shown(world)), *listeners) as process,
        ending_children(process),
        EmbeddedServer(prefect_home(Path(world.file))) as server,
    ):
        show.activity(SERVER, "starting")
        try:
            process.launcher.warm()
            from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

            server.wait()
            show.finish(SERVER)
            # no automation looks for zombies of an embedded run, and joining the heartbeat thread costs 1 s a flow
            with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                yield process
        finally:
            process.shutdown()
            with suppress(Exception):
                flush()
            logging.raiseExceptions = False  # from here on, no server takes log records


def show_result(world: World) -> None:
    """Print the table of all rounds, a tree's nodes, the store, and how to open the Prefect UI."""
    from photon_cli.tables import rounds_table, tree_table, wide_console

    run, rounds = run_of(world.federation), rounds_of_tree(world)
    wide_console().print(rounds_table(rounds[()][1:]))
    if world.children:
        print()
        wide_console().print(tree_table(reached(world, rounds)))
    home, photon = prefect_home(Path(world.file)), Path(sys.executable).with_name("photon")
    print(f"\nstore:       {run.store.url}/{run.run}")
    print(f"Prefect UI:  PREFECT_HOME={quote(str(home))} {quote(str(photon))} server")


@contextmanager
def ending_children(process: "Runtime") -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP first end the children, so that nothing waits for them, then this process."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        for sign in signals:
            signal.signal(sign, signal.SIG_IGN)  # one signal is enough: the shutdown is bounded in time
        threading.Thread(target=process.shutdown, name="photon-shutdown").start()
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {sign: signal.signal(sign, handler) for sign in signals}
    try:
        yield
    finally:
        process.shutdown()
        for sign, old in before.items():
            signal.signal(sign, old)


def flush() -> None:
    """Send Prefect's buffered logs and events while its server still runs."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)
    EventsWorker.drain_all(timeout=5)
