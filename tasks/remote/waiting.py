"""The wait of a round for its sites: until all are done, only failed ones remain, or the deadline passes."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Running

from photon_core.evidence.events import Log

LOOK_SECONDS = 0.5
SLACK_SECONDS = 15.0  # beyond a deadline, for tasks that watch flow runs to report their states


class Waiting:
    """Messages between a round and the tasks that wait for its sites. Thread-safe.

    Args:
        log: event log of the tasks.
    """

    def __init__(self, log: Log | None = None) -> None:
        self.log = log or Log("")
        self._changed = threading.Condition()
        self._failed: dict[str, str] = {}
        self._ended: dict[str, str] = {}
        self._over = False

    def report(self, site: str, failed: str) -> None:
        """From a task: how the site's flow run failed, unless a manual retry follows; empty if it did not."""
        with self._changed:
            self._failed[site] = failed

    def failed(self) -> dict[str, str]:
        """Site -> how its flow run failed."""
        with self._changed:
            return {site: how for site, how in self._failed.items() if how}

    def end(self, site: str, why: str) -> None:
        """From the round: stop waiting for the site."""
        with self._changed:
            self._ended[site] = why
            self._changed.notify_all()

    def close(self) -> None:
        """From the round: stop waiting for all sites."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def pause(self, site: str, seconds: float) -> str:
        """From a task: sleep. Returns why the wait for the site has ended; empty if it has not."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or site in self._ended, seconds)
            return self._ended.get(site, "the round has ended" if self._over else "")


class Alone(Waiting):
    """The wait for a single site. It sets the round's state message itself."""

    def __init__(self, deadline: float, log: Log | None = None) -> None:
        super().__init__(log)
        self._deadline, self._message = deadline, ""

    def report(self, site: str, failed: str) -> None:
        text = _text({site: failed} if failed else {}, self._deadline)
        if text != self._message:
            self._message = text
            tell_state(text)

    def done(self) -> None:
        """The wait was successful: clear the message."""
        self.report("", "")


@contextmanager
def watching(log: Log) -> Iterator[Waiting]:
    """State for tasks that wait for sites. The tasks end with the block, also if the round is cancelled in it."""
    waiting = Waiting(log)
    try:
        yield waiting
    finally:
        waiting.close()


@dataclass(frozen=True)
class Limits:
    """Limits of a round's wait. An edit of the file changes them.

    Args:
        needed: number of sites that must be done before failures of the others may end the wait.
        deadline: Unix time.
        grace: seconds of waiting for failed sites after that; None for up to the deadline.
        slack: seconds beyond the deadline for tasks to end by themselves.
    """

    needed: int
    deadline: float
    grace: float | None
    slack: float = SLACK_SECONDS


def wait_for(
    futures: Mapping[str, PrefectFuture[Any]],
    waiting: Waiting,
    limits: Callable[[], Limits],
    notify: Callable[[str], None],
) -> tuple[list[str], str]:
    """Wait for the sites' tasks.

    Args:
        futures: tasks by site; a site is done if its task has succeeded.
        waiting: state shared with the tasks.
        limits: function that returns the current limits.
        notify: callback for a new message: failed sites that the round waits for, and until when; empty for none.

    Returns:
        the sites whose tasks had not ended at the deadline, and a sentence with the sites that the round waited
        for in vain, and how long; empty for none.
    """
    tasks, since, message = _Tasks(futures), 0.0, ""
    while True:
        now, limit, failed, done = time.time(), limits(), waiting.failed(), tasks.ended()
        left = [site for site in futures if site not in done]
        if not left or now > limit.deadline + limit.slack:
            break
        hopeless = all(site in failed for site in left) and sum(done.values()) >= limit.needed
        since = (since or now) if hopeless else 0.0
        over = since + limit.grace if hopeless and limit.grace is not None else None
        if over is not None and now >= over:
            notify("")
            return [], _give_up(left, failed, waiting, now - since)
        end = limit.deadline if over is None else min(limit.deadline, over)
        if (text := _text({site: failed[site] for site in left if site in failed}, end)) != message:
            notify(text)
            message = text
        tasks.pause()
    if message:
        notify("")
    return left, ""


class _Tasks:
    """The sites' tasks that have ended.

    Args:
        futures: tasks by site.
    """

    def __init__(self, futures: Mapping[str, PrefectFuture[Any]]) -> None:
        self._futures, self._found, self._changed = futures, list[str](), threading.Event()
        self._done: dict[str, bool] = {}
        for site, future in futures.items():
            future.add_done_callback(partial(self._note, site))

    def _note(self, site: str, _: PrefectFuture[Any]) -> None:
        self._found.append(site)
        self._changed.set()

    def ended(self) -> dict[str, bool]:
        """Site -> whether it has succeeded, for sites whose task has ended."""
        for site in self._found[len(self._done) :]:
            self._futures[site].wait()  # returns at once; its state is then known here
            self._done[site] = self._futures[site].state.is_completed()
        return self._done

    def pause(self) -> None:
        """Sleep until another task ends, at most LOOK_SECONDS."""
        self._changed.wait(LOOK_SECONDS)
        self._changed.clear()


def _give_up(left: list[str], failed: Mapping[str, str], waiting: Waiting, seconds: float) -> str:
    for site in left:
        why = f"the quorum is met, and its flow run ended as {failed[site]}; waited {seconds:.0f} s for a retry"
        waiting.end(site, f"{why} (rounds.grace)")
    return f"Waited {seconds:.0f} s (rounds.grace) for a retry of {', '.join(left)}"


def _text(failed: Mapping[str, str], end: float) -> str:
    """Message with the failed sites that the round waits for, and until when; empty for none."""
    if not failed:
        return ""
    until = datetime.fromtimestamp(end, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
    sites = "; ".join(f"{site}: {how}" for site, how in failed.items())
    return f"waits until {until} for a retry of the failed flow runs: {sites}"


def tell_state(text: str) -> None:
    """Make the text the message of the round's state, which stays Running."""
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Running(message=text or None))
    except Exception as error:  # the client raises many kinds; the round waits without the message
        get_run_logger().debug("the state could not be set: %r", error)
    if text:
        get_run_logger().warning("the round %s", text)
