"""Progress for people: bars on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from photon_cli.tables import plain_console
from photon_core.evidence.events import Event, Kind, Listener
from photon_core.evidence.metrics import show
from photon_core.evidence.nodes import path_of
from photon_core.formatting import amount, duration, printable
from photon_core.run.history import remarks
from photon_core.run.line import last_number, newest
from photon_core.run.run import Run, run_of
from schemas.manifests import RoundManifest
from schemas.reading.world import World

PLAIN_SECONDS = 10.0  # between two lines about one site's training


class Display(Protocol):
    """Output of a command while it works."""

    def say(self, text: str) -> None: ...
    def activity(self, name: str, text: str, done: int = 0, total: int | None = None) -> None: ...
    def finish(self, name: str) -> None: ...


class Bars:
    """One bar per activity. Messages scroll above the bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._bars = progress, dict[str, TaskID]()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        self._progress.console.print(printable(text, len(text), lines=True))

    def activity(self, name: str, text: str, done: int = 0, total: int | None = None) -> None:
        with self._lock:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=total, text=text)
            bar = self._bars[name]
        self._progress.update(bar, text=text, completed=done, total=total)

    def finish(self, name: str) -> None:
        with self._lock:
            bar = self._bars.pop(name, None)
        if bar is not None:
            self._progress.remove_task(bar)


class Lines:
    """A line when an activity starts to count or to wait, and every few seconds while it counts."""

    def __init__(self) -> None:
        self._printed: dict[str, tuple[bool, float]] = {}
        self._began: dict[str, tuple[int, float]] = {}

    def say(self, text: str) -> None:
        self._print(text)

    def activity(self, name: str, text: str, done: int = 0, total: int | None = None) -> None:
        counting, now = bool(done), time.monotonic()
        was = self._printed.get(name)
        if was is None or was[0] != counting or now - was[1] > PLAIN_SECONDS:
            self._printed[name] = (counting, now)
            count = f" ({done}/{total}{self._left(name, done, total, now)})" if counting and total else ""
            self._print(f"{name}: {text}{count}")

    def _left(self, name: str, done: int, total: int, now: float) -> str:
        """Remaining time at the pace since the first count; empty without a pace."""
        first, began = self._began.setdefault(name, (done, now))
        if done < first:  # another activity of the same name
            self._began[name] = (done, now)
        if not first < done < total:
            return ""
        return f", {duration((now - began) / (done - first) * (total - done))} left"

    def finish(self, name: str) -> None:
        self._printed.pop(name, None)
        self._began.pop(name, None)

    @staticmethod
    def _print(line: str) -> None:
        print(
            f"{printable(line, len(line), lines=True)}\n", end="", flush=True
        )  # in one call: each site reports from its own thread


class Silence:
    def say(self, text: str) -> None:
        pass

    def activity(self, name: str, text: str, done: int = 0, total: int | None = None) -> None:
        pass

    def finish(self, name: str) -> None:
        pass


@contextmanager
def display(quiet: bool) -> Iterator[Display]:
    """The display for standard output: bars on a terminal, lines elsewhere."""
    if quiet:
        yield Silence()
    elif not sys.stdout.isatty():
        yield Lines()
    else:
        name, text = (
            TextColumn(field, markup=False) for field in ("{task.description:<20}", "{task.fields[text]}")
        )
        columns = (
            SpinnerColumn(),
            *(name, BarColumn(24), text),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=plain_console(), transient=True, refresh_per_second=5) as progress:
            yield Bars(progress)


@dataclass(frozen=True)
class Shown:
    """A run whose progress is shown.

    Args:
        path: path of its federation from the first file; empty for that file's.
        run: the run.
        rounds: number of its last round; None if no end is known.
        members: word for its members.
    """

    path: tuple[str, ...]
    run: Run
    rounds: int | None
    members: str = "sites"

    def part(self, t: int, site: str) -> str:
        """Name of a bar: a site, else a round, else the run."""
        if site:
            return path_of(*self.path, site)
        if not t:
            return path_of(*self.path) or "run"
        number = str(t) if self.rounds is None else f"{t}/{self.rounds}"
        return f"{path_of(*self.path)} round {number}".strip()

    def line(self, manifest: RoundManifest) -> str:
        """Text about a committed round."""
        text = round_line(manifest, self.rounds, self.members)
        return f"{path_of(*self.path)}, {text}" if self.path else text


def shown(world: World) -> dict[str, Shown]:
    """Name of the run -> how it is shown, for every federation of a tree."""
    found = {}
    for names, node in world.nodes():
        federation, run = node.federation, run_of(node.federation)
        last = None if federation.rounds.count is None else last_number(federation, newest(run))
        found[run.run] = Shown(names, run, last, "members" if federation.federations else "sites")
    return found


def follow(show: Display, runs: Mapping[str, Shown]) -> Listener:
    """A listener that shows the progress of runs, given by their names."""

    took: list[float] = []

    def listener(event: Event) -> None:
        t, site, of = event.round, event.member, runs[event.run]
        name, step = of.part(t, site), event.data.get("step")
        if event.kind is Kind.STEP_FAILED:
            who = path_of(*of.path, site or "coordinator")
            show.say(f"round {t}, {who}: {step} failed: {event.data['error']}")
            show.finish(name)
        elif event.kind is Kind.STEP_PROGRESS:
            figures = event.data["figures"]
            text = f"train  loss {figures['loss']:.3f}  {figures['tokens_per_second']:,.0f} tokens/s"
            show.activity(name, text, figures["step"], figures["steps"])
        elif event.kind is Kind.STEP_STARTED:
            show.activity(name, str(step))
        elif event.kind is Kind.ROUND_PUBLISHED and (manifest := of.run.round(t)):
            show.finish(name)
            left = 0.0
            if of.rounds is not None:
                took.append(sum(manifest.seconds.values()))
                left = (of.rounds - t) * sorted(took)[len(took) // 2]
            show.say(of.line(manifest) + (f", about {duration(left)} left" if left else ""))
        elif event.kind is Kind.STEP_FINISHED and step in ("upload", "evaluate", "enter", "contribute"):
            show.finish(name)

    return listener


def round_line(manifest: RoundManifest, rounds: int | None, members: str = "sites") -> str:
    """One line about a committed round, and one for each remark."""
    if manifest.kind != "train":
        return "; ".join(remarks(manifest))
    sent = sum(update.bytes for update in manifest.updates.values())
    text = f"round {manifest.round}" if rounds is None else f"round {manifest.round}/{rounds}"
    text += f": {len(manifest.updates)}/{len(manifest.sampled)} {members}"
    if "perplexity" in manifest.metrics:
        text += f", perplexity {show('perplexity', manifest.metrics['perplexity'])}"
    text += f", train loss {show('train_loss', manifest.metrics['train_loss'])}, {amount(sent)} sent"
    text += f", {sum(manifest.seconds.values()):.1f} s"
    return "\n  ".join([text, *remarks(manifest)])
