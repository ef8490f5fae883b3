"""Progress for people: bars on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from photon_core.formatting import amount, duration, printable
from photon_core.run.history import remarks
from photon_core.run.run import Run
from schemas.manifests import RoundManifest

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


def follow(show: Display, run: Run, rounds: int) -> Listener:
    """A listener that shows the progress of a run of `rounds` rounds."""

    took: list[float] = []

    def listener(event: Event) -> None:
        t, site = event.round, event.member
        name, step = site or (f"round {t}/{rounds}" if t else "run"), event.data.get("step")
        if event.kind is Kind.STEP_FAILED:
            show.say(f"round {t}, {site or 'coordinator'}: {step} failed: {event.data['error']}")
            show.finish(name)
        elif event.kind is Kind.STEP_PROGRESS:
            figures = event.data["figures"]
            text = f"train  loss {figures['loss']:.3f}  {figures['tokens_per_second']:,.0f} tokens/s"
            show.activity(name, text, figures["step"], figures["steps"])
        elif event.kind is Kind.STEP_STARTED:
            show.activity(name, str(step))
        elif event.kind is Kind.ROUND_PUBLISHED and (manifest := run.round(t)):
            show.finish(name)
            took.append(sum(manifest.seconds.values()))
            left = (rounds - t) * sorted(took)[len(took) // 2]
            show.say(round_line(manifest, rounds) + (f", about {duration(left)} left" if left else ""))
        elif event.kind is Kind.STEP_FINISHED and step in ("upload", "evaluate"):
            show.finish(name)

    return listener


def round_line(manifest: RoundManifest, rounds: int) -> str:
    """One line about a committed round, and one for each remark."""
    if manifest.kind != "train":
        return "; ".join(remarks(manifest))
    sent = sum(update.bytes for update in manifest.updates.values())
    text = f"round {manifest.round}/{rounds}: {len(manifest.updates)}/{len(manifest.sampled)} sites"
    if "perplexity" in manifest.metrics:
        text += f", perplexity {show('perplexity', manifest.metrics['perplexity'])}"
    text += f", train loss {show('train_loss', manifest.metrics['train_loss'])}, {amount(sent)} sent"
    text += f", {sum(manifest.seconds.values()):.1f} s"
    return "\n  ".join([text, *remarks(manifest)])
