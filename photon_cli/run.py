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
from photon_cli.progress import Display, display, follow
from photon_core.data.shards import available
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import DataError
from photon_core.evidence.events import Listener
from photon_core.evidence.trackers import check_trackers
from photon_core.run.birth import check_recipe
from photon_core.run.history import history
from photon_core.run.line import last_number, newest, rounds_left
from photon_core.run.members import check_members
from photon_core.run.opening import check_frozen
from photon_core.run.run import run_of
from photon_core.run.start import check_start
from schemas.federation import Federation
from schemas.reading.load import check_paths
from schemas.sections.overlap import check_overlap
from schemas.view import active_views

if TYPE_CHECKING:
    from tasks.runtime import Runtime

SERVER = "Prefect server"


def run_embedded(federation: Federation, file: Path, rounds: int | None, quiet: bool) -> None:
    """Run rounds until the count is reached, then print the table.

    Raises:
        FederationError, DataError: something is wrong or not prepared; nothing was started. Errors of the file
            come before data that is not prepared, which takes work to fix.
        PhotonError: the run failed; what was committed is kept.
    """
    check_paths(federation, sites=[], file=file)  # raw text may be removed once it is prepared
    check_overlap(federation)
    birth, latest = run_of(federation).run_manifest(), newest(run_of(federation))
    if birth is not None:
        check_frozen(birth, federation, load_tokenizer(federation.tokenizer).sha256)
        check_recipe(birth, federation)
    if birth is not None and latest is not None and not rounds_left(federation, latest):
        show_result(federation, file)
        print(f"all {latest.place} rounds are committed. To continue, raise rounds.count in {file}")
        if federation.local.schedule.name == "cosine":
            print("the learning rate stays at its final value, unless local.schedule.total_steps is larger")
        return
    check_members(federation)
    check_trackers(federation)
    check_prepared(federation, file)
    if birth is None:
        check_start(federation)
    with display(quiet) as show:
        run_flow(federation, file, rounds, show)
    show_result(federation, file)


def check_prepared(federation: Federation, file: Path) -> None:
    """Refuse to start before the shards of every active site are prepared."""
    missing = [view.name for view in active_views(federation) if available(view) is None]
    if missing:
        raise DataError(f"not prepared yet: {', '.join(missing)}. Write: photon prepare {file}")


def run_flow(federation: Federation, file: Path, rounds: int | None, show: Display, *listeners: Listener) -> None:
    """Run rounds embedded. The listeners get every event."""
    with embedded(federation, file, show, *listeners):
        from flows.federated_run import federated_run

        federated_run(federation, rounds)


@contextmanager
def embedded(federation: Federation, file: Path, show: Display, *listeners: Listener) -> Iterator["Runtime"]:
    """An embedded Prefect server and a fork server. They start in parallel and end with the block."""
    from tasks.runtime import runtime

    run = run_of(federation)
    shown = follow(show, run, last_number(federation, newest(run)))
    with (
        runtime(shown, *listeners) as process,
        ending_children(process),
        EmbeddedServer(prefect_home(file)) as server,
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


def show_result(federation: Federation, file: Path) -> None:
    """Print the table of all rounds, the store, and how to open the Prefect UI."""
    from photon_cli.tables import rounds_table, wide_console

    run = run_of(federation)
    wide_console().print(rounds_table(history(run)[1:]))
    home, photon = prefect_home(file), Path(sys.executable).with_name("photon")
    print(f"\nstore:       {run.store.url}/{federation.run}")
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
