"""Typed events of a run: each actor appends its events to a log, and sentences for people are rendered from them.

A `Fact` is something that has happened. An `Event` is a fact with its place: the actor, run, round, member and
time. `Kind` lists everything that can happen: a new kind is one more line there. Data holds JSON values. Sentences
are rendered when a manifest, a log message or a page needs them.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from photon_core.evidence.metrics import find
from schemas.server_errors import told

COORDINATOR = "coordinator"
STEPS = {  # names of the steps in sentences
    "validate": "validation", "train": "local training", "upload": "the upload", "evaluate": "evaluation",
}  # fmt: skip

STATE_OF = "site '{member}': the private state of round {last_round}, attempt {last_attempt}"


class Kind(Enum):
    """The kinds of events: stored name, fields of the data, and the sentence, if people read it in manifests.

    The data of every kind may also have `step`, the step of the event, `model`, the evaluated model, and `node`,
    the number of the site's node that reports it.
    """

    # a step of a round
    STEP_STARTED = "step.started", "", ""
    STEP_PROGRESS = "step.progress", "figures", ""
    STEP_FINISHED = "step.finished", "figures", ""
    STEP_FAILED = "step.failed", "error", ""
    STEP_RESTARTED = "step.restarted", "count", "{name} was started {count} times"
    PHASE_ENDED = "phase.ended", "phase start seconds", ""
    # an update
    UPDATE_COMMITTED = "update.committed", "bytes", ""
    UPDATE_SUPERSEDED = "update.superseded", "why", "{why}: it was trained again"
    UPDATE_LATE = "update.late", "why", "{why}; its update was committed nevertheless"
    # local training: appended by a child process, and by the next one that resumes from it
    TRAINING_NOTED = "training.noted", "text", "{text}"  # a sentence, as early versions kept it
    TRAINING_REPEATED = (
        "training.repeated", "",
        "site '{member}': round {round} was trained, but not uploaded, before the federation file was edited; "
        "training of this round restarts",
    )  # fmt: skip
    CHECKPOINT_RESUMED = (
        "checkpoint.resumed", "at steps",
        "site '{member}': resumed from the local checkpoint at step {at} of {steps} after an interruption",
    )  # fmt: skip
    CHECKPOINT_FOREIGN = (
        "checkpoint.foreign", "at",
        "site '{member}': the local checkpoint at step {at} is of another federation file, base model or run; "
        "training of this round restarts",
    )  # fmt: skip
    CHECKPOINT_OF_OTHER_STREAMS = (
        "checkpoint.of_other_streams", "at steps",
        "site '{member}': the local checkpoint at step {at} of {steps} was saved with other streams or "
        "proportions; training of this round restarts",
    )  # fmt: skip
    CHECKPOINT_FAILED = "checkpoint.failed", "error", "a local checkpoint could not be written: {error}"
    STATE_LOST = (
        "state.lost", "last_round last_attempt",
        "{state_of} is missing or damaged; optimizer state and data position are reset",
    )  # fmt: skip
    STATE_OF_OTHER_NODES = (
        "state.of_other_nodes", "last_round last_attempt before now",
        "{state_of} was saved with another number of independent nodes ({before}, now {now}); optimizer state and "
        "data position are reset",
    )  # fmt: skip
    STATE_OF_OTHER_STREAMS = (
        "state.of_other_streams", "last_round last_attempt",
        "{state_of} was saved with other streams or proportions; the data stream starts a new epoch",
    )  # fmt: skip
    STATE_OF_OTHER_OPTIMIZER = (
        "state.of_other_optimizer", "last_round last_attempt before now",
        "{state_of} was saved with the optimizer {before}; the state of {now} is reset",
    )  # fmt: skip
    MICRO_BATCH_LOWERED = (
        "micro_batch.lowered", "failed found",
        "site '{member}': the kernel killed the last training, which ran out of memory with {failed} sequences in "
        "the model at once (micro_batch: auto); the micro-batch is now {found}",
    )  # fmt: skip
    COMPILE_FAILED = "compile.failed", "error", "torch.compile failed, so training continued without it: {error}"
    # a site's flow run, as the coordinator or the flow run itself sees it
    FLOW_RUN_ENDED = "flow_run.ended", "state message", "{where}its flow run was {state}{message}"
    FLOW_RUN_RESTARTED = "flow_run.restarted", "", "{where}it was started again"
    FLOW_RUN_REPLACED = "flow_run.replaced", "", "{where}the file was edited, so a new flow run was started"
    FLOW_RUN_LOST = (
        "flow_run.lost", "state seconds", "{where}it was started again after being {state} for {seconds:g} s",
    )  # fmt: skip
    FLOW_RUN_RETRIED = "flow_run.retried", "why", "its flow run was started again: {why}"
    SERVER_SILENT = "server.silent", "seconds", "{where}the Prefect server did not answer for {seconds:.0f} s"
    SERVER_AWAY = "server.away", "error", "{where}the Prefect server or the store does not answer ({error})"
    STORE_AWAY = (
        "store.away", "seconds tries causes",
        "the store was unreachable for {seconds:.0f} s of the upload: {tries} tries failed ({causes})",
    )  # fmt: skip
    CLAIM_BOUNDED = (
        "claim.bounded", "tokens most",
        "it claims {tokens:.15g} evaluated tokens; only {most} are possible, and count",
    )  # fmt: skip
    # the guard: a problem with a round's candidate, the sites that contradict it, and the guard's action
    NORM_HIGH = (
        "guard.norm", "metric norm times usual",
        "{watched} is {norm:.4g}, {times:.3g} times its running value {usual:.4g}",
    )  # fmt: skip
    LOSS_HIGH = (
        "guard.loss", "jump sites limit",
        "the validation loss is {jump:.4g} above its running value by the median of {sites} sites, over {limit:g}",
    )  # fmt: skip
    LOSS_INFINITE = "guard.no_loss", "sites", "the validation loss is not finite at {sites}"
    STEP_OVERFLOWED = "guard.overflow", "error", "{error}"
    FEW_SITES_LOW = (
        "guard.low", "sites", "the validation loss is out of line at most sites, but not at {sites}",
    )  # fmt: skip
    FEW_SITES_HIGH = (
        "guard.high", "sites", "the validation loss is out of line at {sites}, but not at most sites",
    )  # fmt: skip
    LR_LOWERED = (
        "guard.lr_lowered", "before after",
        "aggregation is retried with server.lr {after:g} (was {before:g})",
    )  # fmt: skip
    UPDATES_DROPPED = "guard.dropped", "sites", "aggregation is retried without {sites}"
    TRIES_ENDED = "guard.ended", "", "no retries left; committed as is"
    # the round
    SITE_EXCLUDED = "site.excluded", "reason", "site '{member}' is excluded from round {round}: {reason}"
    ROUND_PUBLISHED = "round.published", "", ""

    def __init__(self, label: str, fields: str, sentence: str) -> None:
        self.label, self.fields, self.sentence = label, frozenset(fields.split()), sentence


KINDS = {kind.label: kind for kind in Kind}
# problems that a site recovered from, which the round's manifest lists
INCIDENTS = {kind for kind in Kind if kind.sentence and kind.label.partition(".")[0] not in ("guard", "site")}
UNKEPT = {Kind.STEP_PROGRESS}  # one a second and site: sent to the listeners, but not kept in the log
PLACE = frozenset({"step", "model", "node"})


@dataclass(frozen=True)
class Fact:
    """Something that has happened.

    Args:
        kind: kind of the fact.
        data: values of the kind's fields.

    Raises:
        TypeError: the data do not have the kind's fields.
    """

    kind: Kind
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.keys() - PLACE != self.kind.fields:
            raise TypeError(f"{self.kind.label} has {sorted(self.kind.fields)}, not {sorted(self.data)}")

    def __str__(self) -> str:
        """The sentence for people; the stored name if the kind has no sentence."""
        return _sentence(self.kind, self.data)

    def record(self) -> dict[str, Any]:
        """As JSON; the inverse is `fact_of`."""
        return {"kind": self.kind.label, "data": dict(self.data)}


def fact_of(record: Mapping[str, Any] | str) -> Fact:
    """The fact of a record, or of a sentence, which is what early versions have kept."""
    if isinstance(record, str):
        return Fact(Kind.TRAINING_NOTED, {"text": record})
    return Fact(KINDS[record["kind"]], record["data"])


@dataclass(frozen=True)
class Event:
    """A fact with its place.

    Args:
        kind, data: kind and data of the fact.
        actor: coordinator, or site:<name>.
        run: name of the run.
        round: number of the round; 0 before the first.
        member: name of the site; empty for the whole round.
        attempt: number of the site's attempt; 0 if none is meant.
        time: Unix time in seconds by the actor's clock.
    """

    kind: Kind
    actor: str
    run: str
    round: int
    member: str
    attempt: int
    time: float
    data: Mapping[str, Any]

    @property
    def fact(self) -> Fact:
        return Fact(self.kind, self.data)

    @property
    def step(self) -> tuple[str, str]:
        """The step of the event, and the evaluated model; each is empty where there is none."""
        return str(self.data.get("step", "")), str(self.data.get("model", ""))

    def __str__(self) -> str:
        """The sentence for people; the stored name if the kind has no sentence."""
        return _sentence(self.kind, {**self.data, "member": self.member, "round": self.round})


def _sentence(kind: Kind, data: Mapping[str, Any]) -> str:
    if not kind.sentence:
        return kind.label
    step = str(data.get("step", ""))
    words = {
        "name": STEPS.get(step, step),
        "state_of": STATE_OF.format_map(data) if "last_round" in data else "",
        "where": "evaluation: " if step == "evaluate" else "",
        "watched": metric.watched if (metric := find(str(data.get("metric", "")))) else "",
        **{key: ", ".join(value) if isinstance(value, list) else value for key, value in data.items()},
        "message": f" ({data['message']})" if data.get("message") else "",
    }
    node = f"node {data['node']}: " if "node" in data else ""
    return node + kind.sentence.format_map(words)


Listener = Callable[[Event], None]


class Log:
    """The events of one process in a run, in the order in which they were appended. Safe to use from threads.

    `at` and `by` return the same log with another place, which all events that are appended there get.

    Args:
        run: name of the run.
        actor: actor of the appended events.
        listeners: callbacks for each event, in the thread that appends it.
    """

    def __init__(self, run: str, actor: str = COORDINATOR, listeners: Sequence[Listener] = ()) -> None:
        self.run, self.actor, self.round, self.member, self.attempt = run, actor, 0, "", 0
        self._listeners = tuple(listeners)
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def at(self, t: int, member: str = "", attempt: int = 0) -> "Log":
        """The log at another place: a round, and the site of the following events."""
        log = copy(self)
        log.round, log.member, log.attempt = t, member, attempt
        return log

    def by(self, actor: str) -> "Log":
        """The log for another actor."""
        log = copy(self)
        log.actor = actor
        return log

    def append(self, kind: Kind, **data: Any) -> Event:
        """Append an event at the log's place, with the current time."""
        return self.add(Fact(kind, data))

    def add(self, fact: Fact, **more: Any) -> Event:
        """Append an existing fact; `more` is its step and model."""
        data = {**fact.data, **more}
        place = (self.actor, self.run, self.round, self.member, self.attempt)
        event = Event(fact.kind, *place, time.time(), data)
        if event.kind not in UNKEPT:
            with self._lock:
                self._events.append(event)
        for listener in self._listeners:
            listener(event)
        return event

    def events(self) -> list[Event]:
        """The events at the log's place so far: of its round and, if it is at a member, of this member."""
        with self._lock:
            events = list(self._events)
        return [event for event in events if event.round == self.round and self.member in ("", event.member)]

    @contextmanager
    def step(self, step: str, **model: str) -> Iterator[dict[str, float]]:
        """Append the start of a step, and at the end of the block that it has finished (with the figures that the
        block has put into the dict) or failed (with the error)."""
        figures: dict[str, float] = {}
        self.append(Kind.STEP_STARTED, step=step, **model)
        try:
            yield figures
        except BaseException as error:
            self.append(Kind.STEP_FAILED, step=step, **model, error=f"{type(error).__name__}: {told(error)}")
            raise
        self.append(Kind.STEP_FINISHED, step=step, **model, figures=figures)


def incidents_of(log: Log) -> list[Event]:
    """Problems that were recovered from, from the log of a single process's work."""
    return [event for event in log.events() if event.kind in INCIDENTS]


def incidents(events: Iterable[Event]) -> dict[str, list[str]]:
    """Site -> problems that were recovered from, as sentences.

    A step that is started again replaces its earlier sentences. Those that a committed update's manifest holds are
    not repeated.
    """
    texts: dict[str, dict[tuple[str, str], list[str]]] = {}
    for event in events:
        if event.kind is Kind.STEP_STARTED:
            texts.get(event.member, {}).pop(event.step, None)
        elif event.kind is Kind.UPDATE_COMMITTED:
            texts.pop(event.member, None)
        elif event.kind in INCIDENTS:
            texts.setdefault(event.member, {}).setdefault(event.step, []).append(str(event))
    return {site: [text for step in steps.values() for text in step] for site, steps in texts.items() if steps}
