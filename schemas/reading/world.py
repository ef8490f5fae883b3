"""A tree of federations, read from their files: WorldLM (Iacob et al. 2024, arXiv 2405.14446).

A federation's file lists its members' files, and each of those names its parent. What does not fit is refused
before any work. Model, tokenizer and key layers are the same in a tree. The seed may differ: below the root it
draws samples and the order of text, but no parameter, since the first model is the parent's.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.reading.paths import file_options, file_problem
from schemas.reading.places import local_path
from schemas.reading.related import check_apart, check_fit, refusal
from schemas.view import active_views


@dataclass(frozen=True)
class World:
    """A federation, and those below it whose files can be read from here.

    Args:
        federation: its file.
        file: where that is: path or URL.
        children: name of the member -> its part of the tree. Members whose files stay with them are not among
            them: federation.federations has all.
    """

    federation: Federation
    file: str
    children: Mapping[str, "World"]

    def nodes(self, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "World"]]:
        """Every node with its path, the names of members from here: this one first, then each child's part."""
        yield above, self
        for name, child in self.children.items():
            yield from child.nodes((*above, name))

    @property
    def steps(self) -> int:
        """Most local steps that the model goes through in one round, as far as the files are here."""
        active, inner = set(self.federation.active), self.children.items()
        sites = [view.steps for view in active_views(self.federation)]
        return max(sites + [child.rounds * child.steps for name, child in inner if name in active], default=0)

    @property
    def rounds(self) -> int:
        """Rounds of one call by its parent."""
        return self.federation.worldlm.rounds if self.federation.worldlm else 1


def load_world(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> World:
    """Read and check a federation's file and all files below it.

    Args:
        path, overrides, options: as for load_federation, of the first file.

    Raises:
        FederationError: a file is wrong or missing, or two do not fit: file, line, key, value, remedy.
    """
    federation = load_federation(path, overrides, options)
    world = _Reader().node(str(path), federation, (), (_identity(str(path)),))
    for (_, first), (_, second) in combinations(world.nodes(), 2):
        check_apart(first.file, first.federation, second.file, second.federation)
    _refuse_horizon(world)
    return world


class _Reader:
    """Reads the files of one tree, each once."""

    def __init__(self) -> None:
        self._listed: dict[str, str] = {}  # file -> the one that lists it

    def node(self, file: str, federation: Federation, names: tuple[str, ...], above: tuple[str, ...]) -> World:
        """The part of the tree that begins at a file.

        Args:
            file, federation: path or URL, and what is there.
            names: of the members on the way from the first file to this one.
            above: the files on that way, this one among them.
        """
        _refuse_names(file, federation, names)
        children = {}
        for i, child in enumerate(federation.federations):
            if (place := child.federation) is None:
                continue
            if problem := self._listing(file, place, above) or file_problem(federation, place):
                raise refusal(file, federation, ("federations", i, "federation"), problem)
            below = load_federation(place, options=file_options(federation, place))
            check_fit(federation, child.name, place, below)
            children[child.name] = self.node(place, below, (*names, child.name), (*above, _identity(place)))
        return World(federation, file, children)

    def _listing(self, file: str, place: str, above: tuple[str, ...]) -> str | None:
        """What is wrong with listing a file there: it is above, or listed already."""
        identity = _identity(place)
        if identity in above:
            circle = " -> ".join((*above[above.index(identity) :], identity))
            return f"is above this file ({circle}), and a tree has no cycle; drop the member"
        if identity in self._listed:
            return f"is listed in {self._listed[identity]}, and a federation has one parent; drop it from one"
        self._listed[identity] = file
        return None


def _identity(place: str) -> str:
    """The same for all names of a file."""
    path = local_path(place)
    return place if path is None else os.path.realpath(path.expanduser())


def _refuse_names(file: str, federation: Federation, names: tuple[str, ...]) -> None:
    """Paths of names say where a residual comes from, and which member is meant."""
    for _, key, one in federation.placed():
        if one.name in names:
            path = "/".join((*names, one.name))
            message = f"'{one.name}' occurs twice on the path {path}; give it another name"
            raise refusal(file, federation, (*key, "name"), message)


def _refuse_horizon(world: World) -> None:
    """The schedule's end follows from the root's own steps, unless it is written; members may make others."""
    federation, steps = world.federation, world.steps
    own, schedule = federation.local.steps, federation.local.schedule
    known = all(child.paused or child.name in world.children for child in federation.federations)
    if federation.parent is not None or not world.children or not federation.rounds.count:
        return
    if schedule.name == "cosine" and schedule.total_steps is None and (steps > own or (known and steps < own)):
        raise refusal(
            world.file,
            federation,
            ("local", "schedule", "total_steps"),
            f"missing, and would be rounds.count x local.steps, but a round of this tree has {steps} steps, not "
            f"{own}; write {federation.rounds.count * steps}",
        )
