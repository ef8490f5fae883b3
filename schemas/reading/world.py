"""A tree of federations, read from their files: WorldLM (Iacob et al. 2024, arXiv 2405.14446).

A federation's file lists its members' files, and each of those names its parent. Files that do not fit are refused
before any work starts. Model, tokenizer and key layers are the same in a tree. The seed may differ: below the root
it determines samples and the order of text, but no parameter, because the first model is the parent's.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.reading.paths import file_options, file_problem
from schemas.reading.places import local_path
from schemas.reading.related import check_apart, check_fit, refusal
from schemas.view import active_views


@dataclass(frozen=True)
class World:
    """A federation, and the federations below it whose files can be read from this machine.

    Args:
        federation: content of its file.
        file: path or URL of its file.
        children: name of the member -> its part of the tree, without members that keep their files;
            federation.federations has all.
        lost: name of the member -> why its file cannot be read; empty unless the reader was lenient.
    """

    federation: Federation
    file: str
    children: Mapping[str, "World"]
    lost: Mapping[str, str] = field(default_factory=dict)

    def nodes(self, above: tuple[str, ...] = (), paused: bool = True) -> Iterator[tuple[tuple[str, ...], "World"]]:
        """Every node with its path of members' names: this node first, then each child's part.

        Args:
            above: path of this node.
            paused: flag: also paused members, and all below them.
        """
        yield above, self
        for name, child in self.children.items():
            if paused or name in self.federation.active:
                yield from child.nodes((*above, name), paused)

    @property
    def steps(self) -> int:
        """Maximum local steps of the model in one round, of the nodes whose files are known."""
        active, inner = set(self.federation.active), self.children.items()
        sites = [view.steps for view in active_views(self.federation)]
        return max(sites + [child.rounds * child.steps for name, child in inner if name in active], default=0)

    @property
    def rounds(self) -> int:
        """Number of rounds in one call of its parent."""
        return self.federation.worldlm.rounds if self.federation.worldlm else 1


def load_world(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    lenient: bool = False,
) -> World:
    """Read and check a federation's file and all files below it.

    Args:
        path, overrides, options: arguments of load_federation for the first file.
        lenient: flag: if the file of a member is missing or wrong, record the reason in World.lost instead.

    Raises:
        FederationError: a file is wrong or missing, or two do not fit. The message has file, line, key, value and
            remedy.
    """
    federation = load_federation(path, overrides, options)
    world = _Reader(lenient).node(str(path), federation, (), (_identity(str(path)),))
    for (_, first), (_, second) in combinations(world.nodes(), 2):
        check_apart(first.file, first.federation, second.file, second.federation)
    _refuse_horizon(world)
    return world


class _Reader:
    """Reads each file of a tree once."""

    def __init__(self, lenient: bool) -> None:
        self._lenient = lenient
        self._listed: dict[str, str] = {}  # file -> the file that lists it

    def node(self, file: str, federation: Federation, names: tuple[str, ...], above: tuple[str, ...]) -> World:
        """The part of the tree that begins at a file.

        Args:
            file, federation: path or URL, and content of the file.
            names: path of members' names from the first file to this one.
            above: files on that path, including this one.
        """
        _refuse_names(file, federation, names)
        children, lost = dict[str, World](), dict[str, str]()
        for i, child in enumerate(federation.federations):
            if (place := child.federation) is None:
                continue
            if problem := self._listing(file, place, above):
                raise refusal(file, federation, ("federations", i, "federation"), problem)
            try:
                below = _load(file, federation, i, place)
            except FederationError as error:
                if not self._lenient:
                    raise
                lost[child.name] = str(error)
                continue
            check_fit(federation, child.name, place, below)
            children[child.name] = self.node(place, below, (*names, child.name), (*above, _identity(place)))
        return World(federation, file, children, lost)

    def _listing(self, file: str, place: str, above: tuple[str, ...]) -> str | None:
        """Why `file` cannot list the file at `place`: that is above it, or listed already. None if it can."""
        identity = _identity(place)
        if identity in above:
            circle = " -> ".join((*above[above.index(identity) :], identity))
            return f"is above this file ({circle}), and a tree has no cycle; drop the member"
        if identity in self._listed:
            return f"is listed in {self._listed[identity]}, and a federation has one parent; drop it from one"
        self._listed[identity] = file
        return None


def _load(file: str, federation: Federation, i: int, place: str) -> Federation:
    """The file of a member, which is number i in its parent's file.

    Raises:
        FederationError: it cannot be read, or is wrong.
    """
    if problem := file_problem(federation, place):
        raise refusal(file, federation, ("federations", i, "federation"), problem)
    return load_federation(place, options=file_options(federation, place))


def _identity(place: str) -> str:
    """A place that is the same for all names of a file."""
    path = local_path(place)
    return place if path is None else os.path.realpath(path.expanduser())


def _refuse_names(file: str, federation: Federation, names: tuple[str, ...]) -> None:
    """Refuse a name that repeats on a path: such paths identify members, and the origins of residuals."""
    for _, key, one in federation.placed():
        if one.name in names:
            path = "/".join((*names, one.name))
            message = f"'{one.name}' occurs twice on the path {path}; give it another name"
            raise refusal(file, federation, (*key, "name"), message)


def _refuse_horizon(world: World) -> None:
    """Refuse a root without total_steps whose members train other numbers of steps: its schedule, and those of all
    federations below it, would end at a wrong step."""
    federation, steps = world.federation, world.steps
    own, schedule = federation.local.steps, federation.local.schedule
    known = all(child.paused or child.name in world.children for child in federation.federations)
    if federation.parent is not None or not world.children or not federation.rounds.count:
        return
    cosine = any(node.federation.local.schedule.name == "cosine" for _, node in world.nodes(paused=False))
    if cosine and schedule.total_steps is None and (steps > own or (known and steps < own)):
        raise refusal(
            world.file,
            federation,
            ("local", "schedule", "total_steps"),
            f"missing, and would be rounds.count x local.steps, but a round of this tree has {steps} steps, not "
            f"{own}; write {federation.rounds.count * steps}",
        )
