"""A tree of federations at the command line: how it is read and checked, and which commands refuse it.

A command that gets the file of a federation works with all federations below it. The name of a node is its path
from that file, such as europe/berlin.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from photon_cli.prefect.credentials import take_credentials
from photon_cli.reach import reachable
from photon_core.data.shards import available
from photon_core.data.tokenizer import load_tokenizer
from photon_core.errors import DataError, FederationError, PhotonError
from photon_core.evidence.nodes import Problems, path_of
from photon_core.export.node import Node, find_node
from photon_core.formatting import printable
from photon_core.run.birth import check_recipe
from photon_core.run.members import check_members
from photon_core.run.opening import check_frozen
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.reading.load import check_paths, check_store, load_federation
from schemas.reading.places import local_path
from schemas.reading.related import refusal, refuse_shared
from schemas.reading.world import World, load_world
from schemas.sections.overlap import check_overlap, real_places
from schemas.view import SiteView, active_views, views

CHECKS = 16  # stores that are checked at a time


def read_world(file: Path, sites: Iterable[str] | None = None, lenient: bool = False) -> World:
    """Read a file and all below it, and take the credentials of their stores.

    Args:
        file: file of the first federation.
        sites: sites to work with; if the file itself has all of them, no other file is read.
        lenient: flag: record the members whose file cannot be read, for a command that only shows them.

    Raises:
        FederationError: a file is wrong, or two do not fit.
        PhotonError: the server that has the credentials does not answer.
    """
    federation = load_federation(file)
    check_store(federation, file)
    take_credentials(federation)
    if not federation.federations or (sites and {site.name for site in federation.sites}.issuperset(sites)):
        return alone(federation, file)
    world = load_world(file, lenient=lenient)
    _take_one_block(world)
    return world


def reach_world(file: Path) -> World:
    """Read a file and all below it, and check that every store answers and accepts the credentials."""
    world = read_world(file)
    for _, node in world.nodes():
        check_store(node.federation, node.file)
        reachable(node.federation)
    return world


def reach_node(file: Path, path: str | None, below: bool = False) -> Node:
    """The node on a path of members' names, whose stores answer; without a path, the file's own federation.

    Args:
        file: file of the first federation.
        path: path such as europe/berlin.
        below: flag: also read all files below, if there is no path.

    Raises:
        FederationError: there is no such node, a file is wrong, or that of a node on the path is elsewhere.
    """
    if path is None and not below:
        federation = load_federation(file)
        check_store(federation, file)
        take_credentials(federation)
        reachable(federation)
        return Node((), alone(federation, file))
    node = find_node(read_world(file), path)
    for world in (node.world, node.parent):
        if world is not None:
            check_store(world.federation, world.file)
            reachable(world.federation)
    return node


def look_at_world(file: Path) -> tuple[World, Problems]:
    """Read a file and all below it, for a command that only shows them.

    Returns:
        the tree, and the federations whose store does not answer, or refuses the credentials.

    Raises:
        PhotonError: the first file is wrong, or its own store cannot be read.
    """
    world = read_world(file, lenient=True)
    nodes = dict(world.nodes())
    with ThreadPoolExecutor(CHECKS) as pool:
        found = dict(zip(nodes, pool.map(_store_problem, nodes.values()), strict=True))
    if error := found[()]:
        raise error
    return world, {names: printable(str(error)) for names, error in found.items() if error}


def _store_problem(node: World) -> PhotonError | None:
    """Why the store of a federation cannot be read; None if it can."""
    try:
        check_store(node.federation, node.file)
        reachable(node.federation)
    except PhotonError as error:
        return error
    return None


def alone(federation: Federation, file: Path) -> World:
    """A tree with one node."""
    return World(federation, str(file), {})


def sites_below(world: World) -> dict[str, SiteView]:
    """Path -> site, for every site of the tree, also the paused ones, in the order of the files."""
    return {path_of(*names, view.name): view for names, node in world.nodes() for view in views(node.federation)}


def check_places(world: World) -> None:
    """Refuse to start if a node's paths are wrong, or places overlap once links are resolved.

    Raises:
        FederationError: naming the file, the key, the value and the remedy.
    """
    nodes = [node for _, node in world.nodes(paused=False)]
    for node in nodes:
        with _naming(world, node):
            check_paths(node.federation, sites=[], file=local_path(node.file))  # raw text may be removed
            check_overlap(node.federation)
    found = [(node.file, node.federation, real_places(node.federation)) for node in nodes if world.children]
    for first, second in combinations(found, 2):
        refuse_shared(first, second, " with links resolved")


def check_whole(world: World) -> None:
    """Refuse to train a tree if a part of it is elsewhere, or two parts have one name in this process.

    Raises:
        FederationError: naming the file, the key and the remedy.
    """
    federation = world.federation
    if federation.parent is not None:
        raise refusal(
            world.file,
            federation,
            ("parent",),
            f"rounds of run '{federation.parent.run}' start the rounds of this run; write photon run FILE with "
            "that run's file",
        )
    known: dict[str, World] = {}
    for _, node in world.nodes(paused=False):
        _refuse_missing(node)
        run = node.federation.run
        if run in known:
            raise refusal(
                node.file,
                node.federation,
                ("run",),
                f"'{run}' is also the run of {known[run].file}, and photon run finds a node's work by its run's "
                "name; write another name",
            )
        known[run] = node


def check_begun(world: World) -> None:
    """Refuse files that do not fit the runs that they have begun.

    Raises:
        FederationError: naming the file, the key, both values and the remedy.
    """
    for _, node in world.nodes(paused=False):
        with _naming(world, node):
            birth = run_of(node.federation).run_manifest()
            if birth is not None:
                check_frozen(birth, node.federation, load_tokenizer(node.federation.tokenizer).sha256)
                check_recipe(birth, node.federation)


def check_sites(world: World) -> None:
    """Refuse to start before every active site can: its hardware suffices and its shards are prepared.

    Raises:
        FederationError: a site cannot train as the file describes.
        DataError: names all sites without shards, and what to write.
    """
    check_members(world.federation)
    missing = []
    for names, node in world.nodes(paused=False):
        lacking = [path_of(*names, view.name) for view in active_views(node.federation) if available(view) is None]
        if lacking:
            where = f"{node.file}: " if world.children else ""
            missing.append(f"{where}not prepared yet: {', '.join(lacking)}")
    if missing:
        text = "\n".join(missing)
        raise DataError(f"{text}. Write: photon prepare {world.file}")


def refuse_tree(federation: Federation, file: Path, command: str, instead: str) -> None:
    """Refuse a federation of a tree, for a command that does not support trees.

    Args:
        federation: the federation.
        file: its file.
        command: name of the command.
        instead: what to do.

    Raises:
        FederationError: the file has `federations` or `parent`.
    """
    key = "federations" if federation.federations else "parent"
    if federation.federations or federation.parent is not None:
        message = f"photon {command} does not support trees of federations yet; {instead}"
        raise refusal(str(file), federation, (key,), message)


@contextmanager
def _naming(world: World, node: World) -> Iterator[None]:
    """Put the node's file before the text of errors that do not name it."""
    try:
        yield
    except FederationError as error:
        if not world.children or str(error).startswith(node.file):
            raise
        raise FederationError(f"{node.file}: {error}") from None


def _take_one_block(world: World) -> None:
    """Take the credentials of the one block that the tree names. A process has one set of credentials."""
    found: Mapping[str, World] = {
        block: node for _, node in world.nodes() if (block := node.federation.storage.block) is not None
    }
    if len(found) > 1:
        (mine, node), (theirs, other) = list(found.items())[:2]
        raise refusal(
            other.file,
            other.federation,
            ("storage", "block"),
            f"'{theirs}', but '{mine}' in {node.file}, and all stores get one block's credentials; write that",
        )
    if world.federation.storage.block is None:
        for node in found.values():
            take_credentials(node.federation)


def _refuse_missing(node: World) -> None:
    for i, child in enumerate(node.federation.federations):
        if not child.paused and child.name not in node.children:
            raise refusal(
                node.file,
                node.federation,
                ("federations", i, "federation"),
                "missing, and photon run trains every member on this machine; write the path of its file, or "
                "paused: true",
            )
