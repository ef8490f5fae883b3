"""A round's view of a site's flow run, and how the round reacts when that fails."""

import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling, State

from photon_core.evidence.events import Fact, Kind
from photon_core.formatting import printable
from schemas.server_errors import told

AUTOMATIC_RETRIES = 5  # for a crashed flow run of a site; a failed one waits for a manual retry
PENDING = 3
ERROR_LIMIT = 450  # characters
WAITED_SECONDS = 10.0  # longer waits for the server's answer are noted
AGAIN = Fact(Kind.FLOW_RUN_RESTARTED)
EDITED = Fact(Kind.FLOW_RUN_REPLACED)
IN_VAIN = "it committed nothing that counts"


class Asks(Protocol):
    """Request to a site, which changes when the file is edited."""

    def create(self) -> FlowRun:
        """Start a flow run, or find an active one that does the same."""

    def runs(self) -> list[FlowRun]:
        """All flow runs of this request, oldest first."""

    def is_stale(self, run: FlowRun) -> bool:
        """Whether the flow run was given another file than the current one."""


class Watch:
    """A site's flow run, and how its failures were handled.

    A crashed flow run is followed by a new one at once. It is not rescheduled itself: its worker reports the crash
    a second time about 10 s later, and overwrites any state set since.

    Args:
        asks: request that starts the flow run, or finds the one to wait for.
        silence: seconds without a sign after which a flow run counts as crashed. A started one sends heartbeats,
            and the server's automation sets Crashed when they stop. One whose worker died before it started stays
            Pending: its limit is PENDING times as long.
        logger: logger of the calling task.
    """

    def __init__(self, asks: Asks, silence: float, logger: Any) -> None:
        self.asks, self.silence, self.logger = asks, silence, logger
        self.run: FlowRun | None = None
        self.text = "not created"
        self.retries = 0
        self.starts: dict[Any, int] = {}  # flow run -> starts that this process knows of
        self.ended = False  # it failed or was useless, and nobody has restarted it
        self.completed = False  # it was Completed at the last look, and its result does not count
        self.others = False  # it belongs to another coordinator, with another file: not touched until it ends
        self.pending: tuple[Any, float] | None = None  # its Pending state, and its start by this process's clock
        self.gone: type[Exception] | None = None  # error of an unreachable server or store
        self.notes: list[Fact] = []

    @property
    def failed(self) -> str:
        """How the flow run failed for good or was useless, unless a manual retry follows; else empty."""
        return self.text if self.ended else ""

    def incidents(self, client: SyncPrefectClient) -> list[Fact]:
        """Problems up to the result."""
        return self.notes if self.run is not None else past(client, self.asks.runs())

    def story(self) -> str:
        """State of the flow run, and its earlier problems."""
        return f"{self.text}; before: {'; '.join(map(str, self.notes))}" if self.notes else self.text

    def look(self, client: SyncPrefectClient) -> None:
        """Update its state. Restart a crashed flow run; leave a failed one to a manual retry."""
        began = time.monotonic()
        self._look(client)
        self.gone = None
        if (waited := time.monotonic() - began) > WAITED_SECONDS:  # the client itself retries for a minute
            self._note(Fact(Kind.SERVER_SILENT, {"seconds": waited}))

    def _look(self, client: SyncPrefectClient) -> None:
        if self.run is None:
            self._begin(client)
            return
        self.run = client.read_flow_run(self.run.id)
        state = self.run.state
        assert state is not None
        self.text = text(state)
        self._catch_up(client, self.run, state)
        barren = self.completed and state.is_completed()
        self.completed = state.is_completed()
        if (barren or (waits(self.run) and not self.others)) and self.asks.is_stale(self.run):
            if not state.is_final():
                client.set_flow_run_state(self.run.id, Cancelled(message="the file was edited"), force=True)
            self._ask(EDITED)
        elif barren or bad(state):
            self._has_ended(state, ended(state, IN_VAIN if barren else None))
        elif self.ended:
            self.ended = False
            self._note(AGAIN)  # a manual retry
        elif self._is_lost(state):
            client.set_flow_run_state(self.run.id, Cancelled(message="no process started"), force=True)
            self._follow(Fact(Kind.FLOW_RUN_LOST, {"state": state.name, "seconds": PENDING * self.silence}))

    def _catch_up(self, client: SyncPrefectClient, run: FlowRun, state: State) -> None:
        """Note failures of a flow run that was retried manually before this process saw them."""
        known, self.starts[run.id] = self.starts.get(run.id, 1), run.run_count
        if run.run_count > known:
            for fact in past(client, [run]):
                if fact not in (AGAIN, ended(state), *self.notes):
                    self._note(fact)
                    self._note(AGAIN)

    def _has_ended(self, state: State, how: Fact) -> None:
        """Restart a crashed flow run. For any other, look for another active one to wait for."""
        self.text = said(how)
        if not self.ended:
            self.ended = True
            self._note(how)
        if state.is_crashed() and self.retries < AUTOMATIC_RETRIES:
            self._follow(AGAIN)
        elif other := next((run for run in self.asks.runs() if is_under_way(run)), None):
            self.run, self.ended, self.completed, self.others = other, False, False, self.asks.is_stale(other)
            self._note(AGAIN)  # started by `photon rerun` or another round

    def _is_lost(self, state: State) -> bool:
        """Whether no process started, by this machine's clock only: the server's may differ."""
        if not state.is_pending():
            return False
        if self.pending is None or self.pending[0] != state.id:
            self.pending = state.id, time.monotonic()
        return time.monotonic() - self.pending[1] > PENDING * self.silence

    def away(self, error: Exception) -> None:
        """Note that the Prefect server or the store does not answer. Logs once an outage."""
        fact = Fact(Kind.SERVER_AWAY, {"error": told(error)[:ERROR_LIMIT]})
        self.text = str(fact)
        if self.gone is not type(error):
            self._note(fact)
        self.gone = type(error)

    def give_up(self, client: SyncPrefectClient) -> None:
        """Cancel the flow run: nobody would read what it still uploads."""
        if self.run is not None:
            self.run = client.read_flow_run(self.run.id)
            assert self.run.state is not None
            self.text = text(self.run.state)
            cancel(client, self.run, "the round's deadline has passed")

    def _begin(self, client: SyncPrefectClient) -> None:
        """Start or find the flow run. One that ended without an update in an earlier try is replaced at once."""
        known = self.asks.runs()
        self.notes = [*past(client, known), *self.notes]
        self.run = self.asks.create()
        assert self.run.state is not None
        self.text = text(self.run.state)
        if known and self.run.id not in [run.id for run in known]:
            self._note(AGAIN)

    def _follow(self, note: Fact) -> None:
        """Start a new flow run, up to AUTOMATIC_RETRIES times. After that, only a manual retry continues."""
        if self.retries < AUTOMATIC_RETRIES:
            self.retries += 1
            self._ask(note)

    def _ask(self, note: Fact) -> None:
        self.run, self.ended, self.completed, self.others = self.asks.create(), False, False, False
        self._note(note)

    def _note(self, fact: Fact) -> None:
        self.notes.append(fact)
        self.logger.warning(str(fact))


def tagged_runs(client: SyncPrefectClient, flow: str, tags: list[str]) -> list[FlowRun]:
    """The flow runs of a flow that have all these tags, oldest first."""
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=tags)),
    )
    return sorted(found, key=lambda run: str(run.created))


def is_under_way(run: FlowRun) -> bool:
    return run.state is not None and not run.state.is_final() and not run.state.is_cancelling()


def first_under_way(create: Callable[[int], FlowRun]) -> FlowRun:
    """The first of the flow runs numbered from 1 on that has not ended. `create` creates one, or finds it."""
    return next(run for number in itertools.count(1) if is_under_way(run := create(number)))


def waits(run: FlowRun) -> bool:
    """Whether the flow run has never run and no worker has taken it yet."""
    return run.state is not None and run.state.is_scheduled() and not run.run_count


def cancel(client: SyncPrefectClient, run: FlowRun, message: str) -> None:
    """End a flow run that has not ended, and its process, if any."""
    assert run.state is not None
    if not run.state.is_final():
        started = run.state.is_running() or run.state.is_pending()
        ending = Cancelling(message=message) if started else Cancelled(message=message)
        client.set_flow_run_state(run.id, ending, force=True)


def past(client: SyncPrefectClient, runs: list[FlowRun]) -> list[Fact]:
    """Problems before this process looked: another process may have begun the round."""
    facts: list[Fact] = []
    for run in runs:
        if run is not runs[0]:
            facts.append(AGAIN)
        if run.run_count <= 1 and run.state is not None and not bad(run.state):
            continue
        before: State | None = None
        for state in client.read_flow_run_states(run.id):
            if bad(state) and not (before is not None and before.type == state.type):
                facts.append(ended(state))
            elif before is not None and bad(before) and not bad(state):
                facts.append(AGAIN)
            before = state
    return facts


def bad(state: State) -> bool:
    return state.is_final() and not state.is_completed()


def ended(state: State, why: str | None = None) -> Fact:
    """End of a flow run: its state, and its message, which may be a traceback, on one line."""
    message = printable(" ".join((state.message or "").split())) if why is None else why
    return Fact(Kind.FLOW_RUN_ENDED, {"state": state.name or "", "message": message})


def text(state: State) -> str:
    """The state and its message on one line."""
    return said(ended(state))


def said(fact: Fact) -> str:
    """End of a flow run, as the rest of a sentence."""
    message = fact.data["message"]
    return f"{fact.data['state']}" + (f" ({message})" if message else "")
