"""What a round knows of a site's flow run, and what it does when that ends badly."""

import time
from typing import Any, Protocol

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling, State

from photon_core.evidence.events import Fact, Kind
from photon_core.formatting import printable
from schemas.server_errors import told

AUTOMATIC_RETRIES = 5  # of a site's flow run that crashed; one that failed waits for a person
PENDING = 3
ERROR_LIMIT = 450  # characters
WAITED_SECONDS = 10.0  # for an answer of the server, above which it is noted
AGAIN = Fact(Kind.FLOW_RUN_RESTARTED)
EDITED = Fact(Kind.FLOW_RUN_REPLACED)
IN_VAIN = "nothing that it has committed counts"


class Asks(Protocol):
    """What a site is asked for; another when the file is edited."""

    def create(self) -> FlowRun:
        """Start a flow run, or find one that is under way and does the same."""

    def runs(self) -> list[FlowRun]:
        """All flow runs that there have been for this, oldest first."""

    def is_stale(self, run: FlowRun) -> bool:
        """Whether the flow run was given another file than it would be given now."""


class Watch:
    """A site's flow run, and what was done about it.

    One that crashed is followed by another, at once. It is not armed again: its worker tells of the crash a second
    time some 10 s later, over whatever state came since.

    Args:
        asks: starts the flow run, or finds the one that is to be waited for.
        silence: seconds after which a flow run that says nothing has crashed. One that was started sends
            heartbeats, and the server's automation says Crashed when they stop; one that a worker took, and died
            before it was started, stays Pending: it is given PENDING times as long.
    """

    def __init__(self, asks: Asks, silence: float, logger: Any) -> None:
        self.asks, self.silence, self.logger = asks, silence, logger
        self.run: FlowRun | None = None
        self.text = "not created"
        self.retries = 0
        self.starts: dict[Any, int] = {}  # of each flow run: how many this process knows of
        self.ended = False  # badly or in vain, and nobody has started it again
        self.completed = False  # at the last look: what it has made does not count
        self.others = False  # it is another coordinator's, of another file: left alone until it has ended
        self.pending: tuple[Any, float] | None = None  # its Pending state, and since when by this process's clock
        self.gone: type[Exception] | None = None  # how the server or the store fails to answer
        self.notes: list[Fact] = []

    @property
    def failed(self) -> str:
        """How the flow run has failed for good or ended in vain, unless a person retries it; else empty."""
        return self.text if self.ended else ""

    def incidents(self, client: SyncPrefectClient) -> list[Fact]:
        """What went wrong on the way."""
        return self.notes if self.run is not None else past(client, self.asks.runs())

    def story(self) -> str:
        """How the flow run is, and what has happened before."""
        return f"{self.text}; before: {'; '.join(map(str, self.notes))}" if self.notes else self.text

    def look(self, client: SyncPrefectClient) -> None:
        """See how it is; follow a crashed one up, leave a failed one to a person's retry."""
        began = time.monotonic()
        self._look(client)
        self.gone = None
        if (waited := time.monotonic() - began) > WAITED_SECONDS:  # the client itself tries again for a minute
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
            self._note(AGAIN)  # by a person
        elif self._is_lost(state):
            client.set_flow_run_state(self.run.id, Cancelled(message="no process came of it"), force=True)
            self._follow(Fact(Kind.FLOW_RUN_LOST, {"state": state.name, "seconds": PENDING * self.silence}))

    def _catch_up(self, client: SyncPrefectClient, run: FlowRun, state: State) -> None:
        """Note the failures of a flow run that a person retried before this process saw them."""
        known, self.starts[run.id] = self.starts.get(run.id, 1), run.run_count
        if run.run_count > known:
            for fact in past(client, [run]):
                if fact not in (AGAIN, ended(state), *self.notes):
                    self._note(fact)
                    self._note(AGAIN)

    def _has_ended(self, state: State, how: Fact) -> None:
        """Follow a crashed one up; of any other, see whether there is another to wait for."""
        self.text = said(how)
        if not self.ended:
            self.ended = True
            self._note(how)
        if state.is_crashed() and self.retries < AUTOMATIC_RETRIES:
            self._follow(AGAIN)
        elif other := next((run for run in self.asks.runs() if is_under_way(run)), None):
            self.run, self.ended, self.completed, self.others = other, False, False, self.asks.is_stale(other)
            self._note(AGAIN)  # by `photon rerun`, or another round

    def _is_lost(self, state: State) -> bool:
        """Whether no process came of it, by this machine's clock alone: the server's may be another."""
        if not state.is_pending():
            return False
        if self.pending is None or self.pending[0] != state.id:
            self.pending = state.id, time.monotonic()
        return time.monotonic() - self.pending[1] > PENDING * self.silence

    def away(self, error: Exception) -> None:
        """Take note that the Prefect server or the store does not answer; say so once."""
        fact = Fact(Kind.SERVER_AWAY, {"error": told(error)[:ERROR_LIMIT]})
        self.text = str(fact)
        if self.gone is not type(error):
            self._note(fact)
        self.gone = type(error)

    def give_up(self, client: SyncPrefectClient) -> None:
        """Cancel the flow run: what it would still upload, nobody would read."""
        if self.run is not None:
            self.run = client.read_flow_run(self.run.id)
            assert self.run.state is not None
            self.text = text(self.run.state)
            cancel(client, self.run, "the round's deadline has passed")

    def _begin(self, client: SyncPrefectClient) -> None:
        """One of an earlier try that ended without an update is followed by another at once."""
        known = self.asks.runs()
        self.notes = [*past(client, known), *self.notes]
        self.run = self.asks.create()
        assert self.run.state is not None
        self.text = text(self.run.state)
        if known and self.run.id not in [run.id for run in known]:
            self._note(AGAIN)

    def _follow(self, note: Fact) -> None:
        """By another, so many times and no more; then a person's retry of the last one is waited for."""
        if self.retries < AUTOMATIC_RETRIES:
            self.retries += 1
            self._ask(note)

    def _ask(self, note: Fact) -> None:
        self.run, self.ended, self.completed, self.others = self.asks.create(), False, False, False
        self._note(note)

    def _note(self, fact: Fact) -> None:
        self.notes.append(fact)
        self.logger.warning(str(fact))


def is_under_way(run: FlowRun) -> bool:
    return run.state is not None and not run.state.is_final() and not run.state.is_cancelling()


def waits(run: FlowRun) -> bool:
    """Whether no worker has taken it yet, and it has never run."""
    return run.state is not None and run.state.is_scheduled() and not run.run_count


def cancel(client: SyncPrefectClient, run: FlowRun, message: str) -> None:
    """End a flow run if it has not ended; with its process, if it has one."""
    assert run.state is not None
    if not run.state.is_final():
        started = run.state.is_running() or run.state.is_pending()
        ending = Cancelling(message=message) if started else Cancelled(message=message)
        client.set_flow_run_state(run.id, ending, force=True)


def past(client: SyncPrefectClient, runs: list[FlowRun]) -> list[Fact]:
    """What went wrong before this process looked: another may have begun the round."""
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
    """How a flow run has ended: its state, and its message on one line, which may be a traceback."""
    message = printable(" ".join((state.message or "").split())) if why is None else why
    return Fact(Kind.FLOW_RUN_ENDED, {"state": state.name or "", "message": message})


def text(state: State) -> str:
    """The state and its message on one line."""
    return said(ended(state))


def said(fact: Fact) -> str:
    """How a flow run has ended, without the beginning of the sentence."""
    message = fact.data["message"]
    return f"{fact.data['state']}" + (f" ({message})" if message else "")
