"""Checks of two federations of a tree: of parent and child, and of any two."""

from collections.abc import Iterable
from itertools import product

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.paths import is_tokenizer_file
from schemas.reading.places import local_path, read_text
from schemas.reading.problems import dotted, locate
from schemas.reading.yaml_lines import Key, read_yaml
from schemas.sections.model import Model
from schemas.sections.overlap import REMEDY, Place, overlap, places, run_folder
from schemas.sections.tree import Parent

STORE: Key = ("store",)
Placed = tuple[str, Federation, Iterable[Place]]  # a federation's file, what is there, and its places


def check_fit(federation: Federation, name: str, file: str, child: Federation) -> None:
    """Refuse a federation that cannot be this member.

    Args:
        federation: parent of the member.
        name: name of the member.
        file, child: path or URL of the member's file, and its content.

    Raises:
        FederationError: at the key of the member's file.
    """
    if problem := _other_parent(federation, name, child) or _other_model(federation, child):
        raise refusal(file, child, *problem)


def check_apart(first_file: str, first: Federation, file: str, federation: Federation) -> None:
    """Refuse two federations whose runs share a folder, or one of which writes into a place of the other.

    Args:
        first_file, first: path or URL of one federation's file, and its content.
        file, federation: path or URL of the other's, and its content.

    Raises:
        FederationError: at a key of one of the files.
    """
    folder, other = (run_folder(("run",), "run", one) for one in (federation, first))
    if how := overlap(folder, other):
        message = f"the run's folder '{folder.value}' {how} '{other.value}', that of {first_file}"
        raise refusal(file, federation, ("run",), f"{message}; write another run, or another store")
    refuse_shared((first_file, first, places(first)), (file, federation, places(federation)))


def refuse_shared(first: Placed, second: Placed, more: str = "") -> None:
    """Refuse two federations of which one writes where the other has a place.

    Args:
        first, second: each with its file and its places. Two stores may be one: their runs are apart.
        more: for the message, such as how the places were found.

    Raises:
        FederationError: at the key of one of the files.
    """
    for mine, theirs in product(second[2], first[2]):
        if mine.key == theirs.key == STORE:
            continue
        (here, whose, _), one, another, there = second, mine, theirs, first[0]
        if mine.source:
            (here, whose, _), one, another, there = first, theirs, mine, second[0]
        if how := overlap(one, another):
            what = f"{another.name} '{another.value}' of {there}"
            what = f"a folder where {what} can match" if another.pattern else what
            raise refusal(here, whose, one.key, f"'{one.value}' {how} {what}{more}; {REMEDY}")


def refusal(file: str, federation: Federation, key: Key, message: str) -> FederationError:
    """An error at a key of a file, with the line if the file is on this machine."""
    if local_path(file) is None:
        return FederationError(f"{file}: {dotted(key, federation.model_dump())}: {message}")
    data, lines = read_yaml(read_text(file), file)
    return FederationError(locate(key, message, data, file, lines))


def _other_parent(federation: Federation, name: str, child: Federation) -> tuple[Key, str] | None:
    run, endpoint = federation.run, federation.storage.endpoint_url
    listed = f"run '{run}' lists it as '{name}'"
    mine = child.parent
    if mine is None:
        return ("parent",), (
            f"missing, but {listed}; write parent: {{store: {federation.store}, run: {run}, member: {name}}}"
        )
    whole = Parent(store=federation.store, storage=federation.storage, run=run, member=name)
    if overlap(run_folder(STORE, "", mine), run_folder(STORE, "", whole)) != "is":
        if mine.run != run:
            return ("parent", "run"), f"'{mine.run}', but {listed}; write {run}"
        if mine.store != federation.store:
            return ("parent", "store"), f"'{mine.store}', but {listed} in another store; write {federation.store}"
        remedy = f"write {endpoint}" if endpoint else "drop it"
        return ("parent", "storage", "endpoint_url"), f"not the server of the store where {listed}; {remedy}"
    return None if mine.member == name else (("parent", "member"), f"'{mine.member}', but {listed}; write {name}")


def _other_model(federation: Federation, child: Federation) -> tuple[Key, str] | None:
    """The first difference between two models. The preset does not count, only its values."""
    there = f"in run '{federation.run}', its parent"
    for key in Model.model_fields:
        mine, theirs = getattr(child.model, key), getattr(federation.model, key)
        if mine != theirs and key != "preset":
            return ("model", key), f"{mine}, but {theirs} {there}, and a tree has one model; write {theirs}"
    if _differ(child.tokenizer, federation.tokenizer):
        return ("tokenizer",), (
            f"'{child.tokenizer}', but '{federation.tokenizer}' {there}, and a tree has one tokenizer; write that"
        )
    mine, theirs = child.key_layers, federation.key_layers
    if mine != theirs:
        return ("worldlm", "key_layers"), f"{mine}, but {theirs} {there}, and a tree has the same; write {theirs}"
    return None


def _differ(mine: str, theirs: str) -> bool:
    """Whether two tokenizers differ as far as is known here; names and remote files are compared on loading."""
    if mine == theirs:
        return False
    paths = [local_path(one) for one in (mine, theirs) if is_tokenizer_file(one)]
    if len(paths) == 2 and all(path is not None and path.is_file() for path in paths):
        first, second = (path.read_bytes() for path in paths if path is not None)
        return first != second
    return "bytes" in (mine, theirs)
