"""A node of a tree, by its path of members' names: a federation, or a site of one."""

from dataclasses import dataclass

from photon_core.errors import FederationError
from schemas.federation import Federation
from schemas.reading.related import refusal
from schemas.reading.world import World
from schemas.view import SiteView, view_of, views


@dataclass(frozen=True)
class Node:
    """A node of the tree that a file begins.

    Args:
        names: path of members' names from the file; empty for the file's own federation.
        world: the federation, or that of the site.
        parent: parent of the federation; None for the file's own, and for a site.
        view: the site; None for a federation.
    """

    names: tuple[str, ...]
    world: World
    parent: World | None = None
    view: SiteView | None = None

    @property
    def federation(self) -> Federation:
        """The federation, or that of the site."""
        return self.world.federation

    @property
    def name(self) -> str:
        """The path, such as europe/berlin; the name of the run for the file's own federation."""
        return "/".join(self.names) or self.federation.run


def find_node(world: World, path: str | None) -> Node:
    """The node on a path; without a path, the file's own federation.

    Raises:
        FederationError: there is no such node, or the file of a federation on the path is not on this machine.
    """
    node = Node((), world)
    for name in path.split("/") if path is not None else []:
        node = _below(node, name) or _unknown(world, path)
    return node


def _below(node: Node, name: str) -> Node | None:
    """A member of a node; None if it has no member of that name."""
    names, world = (*node.names, name), node.world
    if node.view is not None:
        return None
    if name in world.children:
        return Node(names, world.children[name], world)
    for i, child in enumerate(world.federation.federations):
        if child.name == name:
            message = (
                f"missing, so this machine has neither the model of {'/'.join(names)} nor those below it; ask the "
                f"owner of '{name}', or write the path of its file"
            )
            raise refusal(world.file, world.federation, ("federations", i, "federation"), message)
    known = any(section.name == name for section in world.federation.sites)
    return Node(names, world, view=view_of(world.federation, name)) if known else None


def paths_below(world: World) -> list[str]:
    """The paths of all nodes below a file whose files are on this machine, in the order of the files."""
    found: list[str] = []
    for names, node in world.nodes():
        found += ["/".join(names)] if names else []
        found += ["/".join((*names, view.name)) for view in views(node.federation)]
    return found


def _unknown(world: World, path: str | None) -> Node:
    known = ", ".join(paths_below(world)) or "none, since the file has no members"
    raise FederationError(f"--member {path}: no member has this path; write one of: {known}")
