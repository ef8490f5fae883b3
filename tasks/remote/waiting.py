"""How a round waits for its sites: until all are done, or only such are left as have failed, or the deadline."""

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
SLACK_SECONDS = 15.0  # beyond a deadline, in which tasks that watch flow runs say how far those have come


class Waiting:
    """What a round and the tasks that wait for its sites tell each other. Safe to use from several threads.

    Args:
        log: where the tasks say what they see.
    """

    def __init__(self, log: Log | None = None) -> None:
        self.log = log or Log("")
        self._changed = threading.Condition()
        self._failed: dict[str, str] = {}
        self._ended: dict[str, str] = {}
        self._over = False

    def report(self, site: str, failed: str) -> None:
        """Of a task: how the site's flow run has failed, unless a person retries it; empty if it has not."""
        with self._changed:
            self._failed[site] = failed

    def failed(self) -> dict[str, str]:
        """Site -> how its flow run has failed."""
        with self._changed:
            return {site: how for site, how in self._failed.items() if how}

    def end(self, site: str, why: str) -> None:
        """Of the round: the site is not waited for any more."""
        with self._changed:
            self._ended[site] = why
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody is."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def pause(self, site: str, seconds: float) -> str:
        """Of a task: sleep; why the site is not waited for any more, empty if it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or site in self._ended, seconds)
            return self._ended.get(site, "the round has ended" if self._over else "")


class Alone(Waiting):
    """Of one site that nothing else is waited for beside; says itself whom the round waits for, and until when."""

    def __init__(self, deadline: float, log: Log | None = None) -> None:
        super().__init__(log)
        self._deadline, self._message = deadline, ""

    def report(self, site: str, failed: str) -> None:
        text = _text({site: failed} if failed else {}, self._deadline)
        if text != self._message:
            self._message = text
            tell_state(text)

    def done(self) -> None:
        """What was waited for has come."""
        self.report("", "")


@contextmanager
def watching(log: Log) -> Iterator[Waiting]:
    """For the tasks that wait for sites: they end when this block does, also when the round is cancelled in it."""
    waiting = Waiting(log)
    try:
        yield waiting
    finally:
        waiting.close()


@dataclass(frozen=True)
class Limits:
    """How long a round waits; a file that is edited meanwhile changes it.

    Args:
        needed: sites that must be done before the others' failures may end the wait.
        deadline: Unix time.
        grace: seconds that sites which have failed are waited for after that; None for up to the deadline.
        slack: seconds beyond the deadline that tasks have to end by themselves.
    """

    needed: int
    deadline: float
    grace: float | None
    slack: float = SLACK_SECONDS


def wait_for(
    futures: Mapping[str, PrefectFuture[Any]],
    waiting: Waiting,
    limits: Callable[[], Limits],
    tell: Callable[[str], None],
) -> tuple[list[str], str]:
    """Wait for the sites' tasks.

    Args:
        futures: site -> its task; done if it has succeeded.
        waiting: of the tasks.
        limits: how long, as of now.
        tell: is called with whom the round waits for and until when, whenever that changes; empty if for nobody.

    Returns:
        the sites whose tasks had not ended at the deadline, and a sentence on whom the round waited for in vain,
        and how long; empty if for nobody.
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
            tell("")
            return [], _give_up(left, failed, waiting, now - since)
        end = limit.deadline if over is None else min(limit.deadline, over)
        if (text := _text({site: failed[site] for site in left if site in failed}, end)) != message:
            tell(text)
            message = text
        tasks.pause()
    if message:
        tell("")
    return left, ""


class _Tasks:
    """The sites' tasks that have ended.

    Args:
        futures: site -> its task.
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
        """Site -> whether it is done, of those whose task has ended."""
        for site in self._found[len(self._done) :]:
            self._futures[site].wait()  # at once: its state is then known here
            self._done[site] = self._futures[site].state.is_completed()
        return self._done

    def pause(self) -> None:
        """Until another task ends, and no longer than LOOK_SECONDS."""
        self._changed.wait(LOOK_SECONDS)
        self._changed.clear()


def _give_up(left: list[str], failed: Mapping[str, str], waiting: Waiting, seconds: float) -> str:
    for site in left:
        why = f"the quorum is met, and its flow run was {failed[site]}; waited {seconds:.0f} s for a retry"
        waiting.end(site, f"{why} (rounds.grace)")
    return f"Waited {seconds:.0f} s (rounds.grace) for a retry of {', '.join(left)}"


def _text(failed: Mapping[str, str], end: float) -> str:
    """Whom the round waits for, and until when."""
    if not failed:
        return ""
    until = datetime.fromtimestamp(end, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
    sites = "; ".join(f"{site}: {how}" for site, how in failed.items())
    return f"waits until {until} for a retry of the flow runs that have failed: {sites}"


def tell_state(text: str) -> None:
    """Make it the message of the round's own state, which stays Running."""
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Running(message=text or None))
    except Exception as error:  # of the client: the round waits all the same
        get_run_logger().debug("the state could not be set: %r", error)
    if text:
        get_run_logger().warning("the round %s", text)
