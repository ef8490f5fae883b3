"""What happens in a run, as typed events: whoever acts appends them to a log, and sentences are made from them.

A `Fact` is what has happened. An `Event` is a fact with its place: who says it, in which run and round, about
which member, and when. `Kind` is the one list of what can happen: a new kind is a new line there. Data holds what
JSON takes. Sentences are made when a manifest, a log message or a page needs them.
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
STEPS = {  # how a step is called in a sentence
    "validate": "validation", "train": "local training", "upload": "the upload", "evaluate": "evaluation",
}  # fmt: skip

STATE_OF = "site '{member}': the private state of round {last_round}, attempt {last_attempt}"


class Kind(Enum):
    """What can happen: the stored name, the fields of its data, and how it reads, if people read it in manifests.

    Every kind's data may also have `step`, the step that it happened in, `model`, whose evaluation that was, and
    `node`, the number of the site's node that says it.
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
    UPDATE_LATE = "update.late", "why", "{why}; its update was committed all the same"
    # local training, as a child process and the next one that goes on from it say it
    TRAINING_NOTED = "training.noted", "text", "{text}"  # a sentence, which is what early versions have kept
    TRAINING_REPEATED = (
        "training.repeated", "",
        "site '{member}': round {round} was trained, but not uploaded, before the federation file was edited: "
        "it is trained anew",
    )  # fmt: skip
    CHECKPOINT_RESUMED = (
        "checkpoint.resumed", "at steps",
        "site '{member}': the local checkpoint at step {at} of {steps} was gone on from after an interruption",
    )  # fmt: skip
    CHECKPOINT_FOREIGN = (
        "checkpoint.foreign", "at",
        "site '{member}': the local checkpoint at step {at} is of another federation file, base model or run: "
        "the round's training starts afresh",
    )  # fmt: skip
    CHECKPOINT_OF_OTHER_STREAMS = (
        "checkpoint.of_other_streams", "at steps",
        "site '{member}': the local checkpoint at step {at} of {steps} belongs to another mix of streams: "
        "the round's training starts afresh",
    )  # fmt: skip
    CHECKPOINT_FAILED = "checkpoint.failed", "error", "a local checkpoint could not be written: {error}"
    STATE_LOST = (
        "state.lost", "last_round last_attempt",
        "{state_of} is missing or damaged: optimizer state and data stream start afresh",
    )  # fmt: skip
    STATE_OF_OTHER_NODES = (
        "state.of_other_nodes", "last_round last_attempt before now",
        "{state_of} belongs to another number of nodes that train apart ({before}, now {now}): optimizer state "
        "and data stream start afresh",
    )  # fmt: skip
    STATE_OF_OTHER_STREAMS = (
        "state.of_other_streams", "last_round last_attempt",
        "{state_of} belongs to another mix of streams: the data stream begins a new epoch",
    )  # fmt: skip
    STATE_OF_OTHER_OPTIMIZER = (
        "state.of_other_optimizer", "last_round last_attempt before now",
        "{state_of} belongs to the optimizer {before}: the state of {now} starts afresh",
    )  # fmt: skip
    MICRO_BATCH_LOWERED = (
        "micro_batch.lowered", "failed found",
        "site '{member}': the kernel killed the last training for memory, which put {failed} sequences through "
        "the model at once (micro_batch: auto); it is {found} from now on",
    )  # fmt: skip
    COMPILE_FAILED = "compile.failed", "error", "torch.compile failed, training went on without: {error}"
    # a site's flow run, as the coordinator sees it, or itself
    FLOW_RUN_ENDED = "flow_run.ended", "state message", "{where}its flow run was {state}{message}"
    FLOW_RUN_RESTARTED = "flow_run.restarted", "", "{where}it was started again"
    FLOW_RUN_REPLACED = "flow_run.replaced", "", "{where}the file was edited: it was asked again"
    FLOW_RUN_LOST = (
        "flow_run.lost", "state seconds", "{where}it was started again after being {state} for {seconds:g} s",
    )  # fmt: skip
    FLOW_RUN_RETRIED = "flow_run.retried", "why", "its flow run was started again: {why}"
    SERVER_SILENT = "server.silent", "seconds", "{where}the Prefect server did not answer for {seconds:.0f} s"
    SERVER_AWAY = "server.away", "error", "{where}the Prefect server or the store does not answer ({error})"
    STORE_AWAY = (
        "store.away", "seconds tries causes",
        "the store was away for {seconds:.0f} s of the upload: {tries} tries failed ({causes})",
    )  # fmt: skip
    CLAIM_BOUNDED = (
        "claim.bounded", "tokens most",
        "it claims {tokens:.15g} evaluated tokens; at most {most} are possible, and count",
    )  # fmt: skip
    # what the guard finds wrong with a candidate for a round, who says otherwise, and what it does
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
        "server.lr lowered from {before:g} to {after:g}, and the round applied again",
    )  # fmt: skip
    UPDATES_DROPPED = "guard.dropped", "sites", "the round applied again without {sites}"
    TRIES_ENDED = "guard.ended", "", "no tries are left, and it stands"
    # the round
    SITE_EXCLUDED = "site.excluded", "reason", "site '{member}' is left out of round {round}: {reason}"
    ROUND_PUBLISHED = "round.published", "", ""

    def __init__(self, label: str, fields: str, sentence: str) -> None:
        self.label, self.fields, self.sentence = label, frozenset(fields.split()), sentence


KINDS = {kind.label: kind for kind in Kind}
# what a manifest says of a site whose part came to its end all the same
INCIDENTS = {kind for kind in Kind if kind.sentence and kind.label.partition(".")[0] not in ("guard", "site")}
UNKEPT = {Kind.STEP_PROGRESS}  # one a second and site: listeners hear of them, the log does not keep them
PLACE = frozenset({"step", "model", "node"})


@dataclass(frozen=True)
class Fact:
    """Something that has happened.

    Raises:
        TypeError: the data are not what the kind has.
    """

    kind: Kind
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.keys() - PLACE != self.kind.fields:
            raise TypeError(f"{self.kind.label} has {sorted(self.kind.fields)}, not {sorted(self.data)}")

    def __str__(self) -> str:
        """The sentence, for people; a kind without one reads as its name."""
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
        kind, data: of the fact.
        actor: who says it: the coordinator, or site:<name>.
        run: the run's name.
        round: number of the round; 0 before the first.
        member: the site that it is about; empty for the whole round.
        attempt: of the site's update; 0 where none is meant.
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
        """The step that it happened in, and the model that the step is about; empty where there is none."""
        return str(self.data.get("step", "")), str(self.data.get("model", ""))

    def __str__(self) -> str:
        """The sentence, for people; a kind without one reads as its name."""
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
    """The events of a process's part in a run, in the order in which they were appended. Safe to use from threads.

    `at` and `by` give the same log with another place, which whatever is appended there gets.

    Args:
        run: the run's name.
        actor: who appends.
        listeners: are called with every event, in the thread that appends it.
    """

    def __init__(self, run: str, actor: str = COORDINATOR, listeners: Sequence[Listener] = ()) -> None:
        self.run, self.actor, self.round, self.member, self.attempt = run, actor, 0, "", 0
        self._listeners = tuple(listeners)
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def at(self, t: int, member: str = "", attempt: int = 0) -> "Log":
        """The log at a place: a round, and the site that what follows is about."""
        there = copy(self)
        there.round, there.member, there.attempt = t, member, attempt
        return there

    def by(self, actor: str) -> "Log":
        """The log as another actor's."""
        there = copy(self)
        there.actor = actor
        return there

    def append(self, kind: Kind, **data: Any) -> Event:
        """Say that something has happened, now and here."""
        return self.add(Fact(kind, data))

    def add(self, fact: Fact, **more: Any) -> Event:
        """Append a fact that somebody found; `more` is its step."""
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
        """What has happened here so far: of the round and, if the log is at a member, of that one alone."""
        with self._lock:
            events = list(self._events)
        return [event for event in events if event.round == self.round and self.member in ("", event.member)]

    @contextmanager
    def step(self, step: str, **model: str) -> Iterator[dict[str, float]]:
        """Append that a step has started, and has finished (with the figures that the block put into the dict) or
        failed (with the error)."""
        figures: dict[str, float] = {}
        self.append(Kind.STEP_STARTED, step=step, **model)
        try:
            yield figures
        except BaseException as error:
            self.append(Kind.STEP_FAILED, step=step, **model, error=f"{type(error).__name__}: {told(error)}")
            raise
        self.append(Kind.STEP_FINISHED, step=step, **model, figures=figures)


def incidents_of(log: Log) -> list[Event]:
    """What went wrong on the way, of a log of one process's work alone."""
    return [event for event in log.events() if event.kind in INCIDENTS]


def incidents(events: Iterable[Event]) -> dict[str, list[str]]:
    """Site -> what went wrong on the way to a result that came all the same, a sentence each.

    A step that is started again says anew, and what is in a committed update's manifest is not said twice.
    """
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    for event in events:
        if event.kind is Kind.STEP_STARTED:
            found.get(event.member, {}).pop(event.step, None)
        elif event.kind is Kind.UPDATE_COMMITTED:
            found.pop(event.member, None)
        elif event.kind in INCIDENTS:
            found.setdefault(event.member, {}).setdefault(event.step, []).append(str(event))
    return {site: [text for said in steps.values() for text in said] for site, steps in found.items() if steps}
