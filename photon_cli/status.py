"""photon status: committed rounds, what every site is doing now, and the time left.

Committed rounds come from the store. Current work comes from the Prefect server, if one answers within three
seconds: the server of PREFECT_API_URL, else that of a `photon run` of the same file. Without a server, the store
shows which sites have committed their update. Needs neither torch nor prefect.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photon_cli.prefect.embedded import prefect_home
from photon_cli.prefect.live import Doing, Live, age, ask, server_url
from photon_cli.tables import plain_console, rounds_table, tree_table, wide_console
from photon_core.errors import CorruptFile
from photon_core.evidence.nodes import UNREADABLE, Names, Problems, Reached, path_of, reached, unread
from photon_core.evidence.noise import of_file
from photon_core.evidence.summary import summary
from photon_core.formatting import duration, printable
from photon_core.run.history import history
from photon_core.run.line import progress
from photon_core.run.run import Run, run_of
from photon_core.run.updates import next_attempt
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.reading.world import World

if TYPE_CHECKING:
    from rich.console import Group

VERSION = 1  # of --json: within a version, keys are added and never change their meaning
REFRESH = 2.0  # seconds between two refreshes of --watch
RECENT = 5  # rounds from which the time left is computed
Runs = Mapping[Names, Run | str]  # path -> run, which caches what it has read; or why it cannot be read


class Status:
    """Snapshot of a run, and of the runs of its members that are federations.

    Args:
        world: the federation, and those below it.
        runs: runs of all of them; one below the first that cannot be read does not count as an error.
        home: folder of the embedded server, beside the federation file.
        names: path from the first file.
        finished: whether the first file's run has reached its last round.
    """

    def __init__(self, world: World, runs: Runs, home: Path, names: Names = (), finished: bool = False) -> None:
        self.world, self.federation, self.names = world, world.federation, names
        self.run, self.rounds, self.problem = _read(runs[names], bool(names))
        self.done = self.rounds[-1].round if self.rounds else 0
        self.place = self.rounds[-1].place if self.rounds else 0
        self.finished = finished or (bool(self.rounds) and self.place >= self.federation.total_rounds)
        url = None if self.finished else server_url(home)
        self.live = ask(url, self.federation.run, self.done + 1) if url and not self.problem else None
        self.left = seconds_left(self.rounds, self.federation.rounds.count, self.live)
        self.below = [
            Status(child, runs, home, (*names, name), self.finished) for name, child in world.children.items()
        ]
        self.is_tree = bool(self.below or world.lost)
        self.sites = [] if self.finished else self._doing()

    def _doing(self) -> list[Doing]:
        """What each member does, and each site below it."""
        mine = _sites(self.federation, self.run, self.done + 1, self.live, bool(self.rounds))
        theirs = {one.names[-1]: one.sites for one in self.below}
        found = []
        for doing in mine:
            found.append(replace(doing, site=path_of(*self.names, doing.site)))
            found += theirs.get(doing.site, [])
        return found

    def nodes(self) -> Iterator["Status"]:
        """This one, and all below it."""
        yield self
        for one in self.below:
            yield from one.nodes()

    def inner(self) -> Iterator["Status"]:
        """All below it."""
        return (one for one in self.nodes() if one is not self)

    def facts(self) -> dict[str, Any]:
        """Output of --json. docs/looking.md lists the keys that scripts may rely on."""
        live = self.live
        facts = {
            "version": VERSION,
            "run": self.federation.run,
            "store": self.store,
            "committed": self.done if self.rounds else None,
            "trained": self.place if self.rounds else None,
            "count": self.federation.rounds.count,
            "seconds_left": self.left,
            "server": live.url if live else None,
            "opened": live.opened if live else "",
            "coordinator": live.coordinator if live else "",
            "sites": [doing.facts() for doing in self.sites],
            "rounds": [
                {
                    "round": manifest.round,
                    "kind": manifest.kind,
                    "to": manifest.to,
                    "rolled_back": self.rounds[-1].left_behind(manifest.round),
                    "model_sha256": manifest.model_sha256,
                    "global_step": manifest.global_step,
                    "total_tokens": manifest.total_tokens,
                    "metrics": manifest.metrics,
                    "seconds": manifest.seconds,
                    "created": manifest.created,
                    "sites": summary(manifest),
                }
                for manifest in self.rounds
            ],
        }
        return facts | ({"nodes": [node.facts() for node in self.reached()]} if self.is_tree else {})

    @property
    def store(self) -> str:
        """URL of the store."""
        return self.run.store.url if self.run else self.federation.store

    def reached(self) -> list[Reached]:
        """Results of every node."""
        problems = {one.names: one.problem for one in self.nodes() if one.problem}
        rounds = {one.names: one.rounds for one in self.nodes() if not one.problem}
        return reached(self.world, rounds, problems)

    def lines(self) -> list[str]:
        """First lines, for people: rounds, time left, current work, noise."""
        if not self.rounds:
            parent = self.federation.parent
            head = f"run {self.federation.run}: no rounds in {self.store} yet. "
            head += f"Rounds of run '{parent.run}' start it" if parent else "Next: photon prepare, then photon run"
        else:
            head = f"run {self.federation.run}: {progress(self.federation, self.place)} in {self.store}"
            if self.place != self.done:
                head += f", the latest has number {self.done}"
        if self.left is not None and not self.finished:
            head += f", about {duration(self.left)} left"
        lines = [head]
        if self.live and self.live.opened:
            at = f": {self.live.coordinator}" if self.live.coordinator else ""
            lines.append(f"round {self.done + 1} is running{at}")
        elif not self.finished and self.rounds:
            lines.append(
                "no Prefect server answers: the lines below come from the store"
                if not self.live
                else "no round is running"
            )
        for one in self.nodes():
            where = f"{path_of(*one.names)}: " if one.names else ""
            lines += [where + text for text in of_file(one.federation)]
        return lines

    def show(self, newest: int | None = None) -> "Group":
        """Everything, for a terminal. With `newest`, only that many rounds."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(line, style="bold" if i == 0 else "") for i, line in enumerate(self.lines())]
        if self.sites and self.rounds:
            table = Table("site", "now", "since", box=None, pad_edge=False, header_style="bold")
            for doing in self.sites:
                seconds = age(doing.since)
                style = "red" if doing.state in ("Failed", "Crashed") else ""
                table.add_row(
                    doing.site, words(doing), duration(seconds) if seconds is not None else "", style=style
                )
            parts += [Text(""), table]
        trained = self.rounds[1:]
        if trained:
            parts += [Text(""), rounds_table(trained[-newest:] if newest else trained)]
        if self.is_tree:
            nodes = self.reached()
            parts += [Text(""), tree_table(nodes), *(Text(line, style="red") for line in unread(nodes))]
        return Group(*parts)


def runs_of(world: World, problems: Problems | None = None) -> Runs:
    """Runs of a federation and of those below it. `problems` has the ones that are known to be unreadable."""
    known = problems or {}
    return {names: known.get(names) or run_of(node.federation) for names, node in world.nodes()}


def _read(run: Run | str, inner: bool) -> tuple[Run | None, list[RoundManifest], str]:
    """A run, its rounds, and why they cannot be read.

    Raises:
        PhotonError: they cannot, and it is the run of the first file.
    """
    if isinstance(run, str):
        return None, [], run
    try:
        return run, history(run), ""
    except UNREADABLE as error:
        if not inner:
            raise
        return None, [], printable(str(error))


def show_status(world: World, problems: Problems, as_json: bool, watch: bool) -> None:
    """Print the status once, or repeatedly until the last round is committed or Ctrl-C.

    Args:
        world: the federation, and those below it.
        problems: federations below it that are known to be unreadable.
        as_json, watch: flags.
    """
    home, runs = prefect_home(Path(world.file)), runs_of(world, problems)
    if not watch:
        status = Status(world, runs, home)
        if as_json:
            print(json.dumps(status.facts(), indent=2))
        else:
            wide_console().print(status.show())
        return
    if as_json:
        _watch_json(world, runs, home)
    elif sys.stdout.isatty():
        _watch_terminal(world, runs, home)
    else:
        _watch_lines(world, runs, home)


def _watch_terminal(world: World, runs: Runs, home: Path) -> None:
    from rich.live import Live as Screen

    with Screen(refresh_per_second=1, console=plain_console()) as screen:
        while True:
            status = Status(world, runs, home)
            screen.update(status.show(newest=3), refresh=True)
            if status.finished:
                return
            time.sleep(REFRESH)


def _watch_lines(world: World, runs: Runs, home: Path) -> None:
    """Print a line when it differs from the ones before."""
    before: set[str] = set()
    while True:
        status = Status(world, runs, home)
        now = [
            progress(world.federation, status.place),
            *(f"{path_of(*s.names)}: {progress(s.federation, s.place)}" for s in status.inner() if s.run),
            *(f"{d.site}: {words(d)}" for d in status.sites),
            *(unread(status.reached()) if status.is_tree else []),
        ]
        for line in now:
            if line not in before:
                print(line, flush=True)
        before = set(now)
        if status.finished:
            return
        time.sleep(REFRESH)


def _watch_json(world: World, runs: Runs, home: Path) -> None:
    """Print one object per line."""
    while True:
        status = Status(world, runs, home)
        print(json.dumps(status.facts()), flush=True)
        if status.finished:
            return
        time.sleep(REFRESH)


def words(doing: Doing) -> str:
    """Current work of a site, for people."""
    text = " ".join(part for part in (doing.step, doing.state.lower()) if part)
    if doing.percent is not None and doing.state == "Running":
        text += f", {doing.percent:.0f} % of the local steps"
    return text + (f": {doing.message}" if doing.message else "")


def _sites(federation: Federation, run: Run | None, t: int, live: Live | None, born: bool) -> list[Doing]:
    """Current work of every member: from the server, else from the store's round t."""
    found = []
    for one in federation.members:
        if live and one.name in live.sites:
            found.append(live.sites[one.name])
        elif run is None:
            found.append(Doing(one.name, "", "unknown"))
        else:
            found.append(_in_store(run, t, one.name) if born else Doing(one.name, "", "nothing yet"))
    return found


def _in_store(run: Run, t: int, site: str) -> Doing:
    try:
        if next_attempt(run, t, site) > 1:
            return Doing(site, "upload", "Committed")
    except CorruptFile as error:
        return Doing(site, "", str(error))
    return Doing(site, "", "no update yet")


def seconds_left(rounds: Sequence[RoundManifest], count: int | None, live: Live | None) -> float | None:
    """Seconds for the remaining rounds, at the pace of the latest ones; None without a pace or a count."""
    trained = [manifest for manifest in rounds[1:] if manifest.kind == "train"]
    recent = sorted(sum(manifest.seconds.values()) for manifest in trained[-RECENT:])
    if not recent or count is None:
        return None
    pace = recent[len(recent) // 2]
    left = (count - rounds[-1].place) * pace
    gone = age(live.opened) if live and live.opened else None
    return max(0.0, left - min(gone or 0.0, pace))
