"""What a round knows of a site's flow run, and what it does when that ends badly."""

import time
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Cancelled, Cancelling, State

from photon_core.errors import printable

AUTOMATIC_RETRIES = 2  # of a site's flow run that crashed; one that failed waits for a person
PENDING = 3
WAITED_SECONDS = 10.0  # for an answer of the server, above which it is noted
AGAIN = "it was started again"


class Watch:
    """A site's flow run, and what was done about it.

    One that crashed is followed by another, at once. It is not armed again: its worker tells of the crash a second
    time some 10 s later, over whatever state came since.

    Args:
        create: starts the flow run, or finds the one that is to be waited for.
        runs: all flow runs that there have been for this, oldest first.
        silence: seconds after which a flow run that says nothing has crashed. One that was started sends
            heartbeats, and the server's automation says Crashed when they stop; one that a worker took, and died
            before it was started, stays Pending: it is given PENDING times as long.
    """

    def __init__(
        self, create: Callable[[], FlowRun], runs: Callable[[], list[FlowRun]], silence: float, logger: Any
    ) -> None:
        self.create, self.runs, self.silence, self.logger = create, runs, silence, logger
        self.run: FlowRun | None = None
        self.text = "not created"
        self.retries = 0
        self.ended = False  # badly, and nobody has started it again
        self.notes: list[str] = []

    def incidents(self, client: SyncPrefectClient) -> list[str]:
        """What went wrong on the way, a sentence each."""
        return self.notes if self.run is not None else past(client, self.runs())

    def story(self) -> str:
        """How the flow run is, and what has happened before."""
        return f"{self.text}; before: {'; '.join(self.notes)}" if self.notes else self.text

    def look(self, client: SyncPrefectClient) -> None:
        """See how it is; follow a crashed one up, leave a failed one to a person's retry."""
        began = time.monotonic()
        self._look(client)
        if (waited := time.monotonic() - began) > WAITED_SECONDS:  # the client itself tries again for a minute
            self._note(f"the Prefect server did not answer for {waited:.0f} s")

    def _look(self, client: SyncPrefectClient) -> None:
        if self.run is None:
            self._begin(client)
            return
        self.run = client.read_flow_run(self.run.id)
        state = self.run.state
        assert state is not None
        self.text = text(state)
        if bad(state):
            if not self.ended:
                self.ended = True
                self._note(f"its flow run was {self.text}")
            if state.is_crashed():
                self._follow(AGAIN)
        elif self.ended:
            self.ended = False
            self._note(AGAIN)  # by a person
        elif state.is_pending() and time.time() - state.timestamp.timestamp() > PENDING * self.silence:
            client.set_flow_run_state(self.run.id, Cancelled(message="no process came of it"), force=True)
            self._follow(f"{AGAIN} after being {state.name} for {PENDING * self.silence:g} s")

    def away(self, error: Exception) -> None:
        """Take note that the Prefect server or the store does not answer; say so once."""
        found = f"the Prefect server or the store does not answer ({type(error).__name__}: {error})"[:500]
        if not self.text.startswith(found[:60]):
            self._note(found)
        self.text = found

    def give_up(self, client: SyncPrefectClient) -> None:
        """Cancel the flow run: what it would still upload, nobody would read."""
        if self.run is not None:
            self.run = client.read_flow_run(self.run.id)
            assert self.run.state is not None
            self.text = text(self.run.state)
            if not self.run.state.is_final():
                started = self.run.state.is_running() or self.run.state.is_pending()
                ending = Cancelling() if started else Cancelled(message="the round's deadline has passed")
                client.set_flow_run_state(self.run.id, ending, force=True)

    def _begin(self, client: SyncPrefectClient) -> None:
        """One of an earlier try that ended without an update is armed again at once."""
        self.run = self.create()
        state = self.run.state
        assert state is not None
        self.text = text(state)
        before = past(client, self.runs())
        self.notes = [*before, *self.notes]
        if state.is_final():
            client.set_flow_run_state(self.run.id, AwaitingRetry(), force=True)
            self._note(AGAIN)
        else:  # it may have ended badly since: what is told in `before` is not to be told twice
            self.ended = bool(before) and before[-1] != AGAIN

    def _follow(self, note: str) -> None:
        """By another, so many times and no more; then a person's retry of the last one is waited for."""
        if self.retries < AUTOMATIC_RETRIES:
            self.retries += 1
            self.run, self.ended = self.create(), False
            self._note(note)

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self.logger.warning(sentence)


def past(client: SyncPrefectClient, runs: list[FlowRun]) -> list[str]:
    """What went wrong before this process looked, a sentence each: another may have begun the round."""
    sentences: list[str] = []
    for run in runs:
        if run is not runs[0]:
            sentences.append(AGAIN)
        if run.run_count <= 1 and run.state is not None and not bad(run.state):
            continue
        before: State | None = None
        for state in client.read_flow_run_states(run.id):
            if bad(state) and not (before is not None and before.type == state.type):
                sentences.append(f"its flow run was {text(state)}")
            elif before is not None and bad(before) and not bad(state):
                sentences.append(AGAIN)
            before = state
    return sentences


def bad(state: State) -> bool:
    return state.is_final() and not state.is_completed()


def text(state: State) -> str:
    """The state and its message on one line; a message may be a traceback."""
    message = printable(" ".join((state.message or "").split()))
    return f"{state.name}" + (f" ({message})" if message else "")
