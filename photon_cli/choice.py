"""The options --member, --trained and --round: which model of which node a command works with."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class Choice:
    """A model of a node. Each field is an option of the commands."""

    member: Annotated[
        str | None,
        typer.Option(
            "--member",
            "-m",
            help="path of a node of the tree, such as europe or europe/berlin; default: the file's federation",
        ),
    ] = None
    trained: Annotated[
        bool, typer.Option("--trained", help="the model that the node has trained, not that which it starts from")
    ] = False
    t: Annotated[
        int | None,
        typer.Option(
            "--round", "-r", min=0, help="number of a committed round of the node's run; default: the latest"
        ),
    ] = None


def chooses_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the three options. It gets them as its argument `choice`."""

    @wraps(command)
    def run(**values: Any) -> None:
        command(choice=Choice(**{name: values.pop(name) for name in options}), **values)

    options = inspect.signature(Choice).parameters
    others = [one for name, one in inspect.signature(command).parameters.items() if name != "choice"]
    run.__dict__["__signature__"] = inspect.Signature([*others, *options.values()])
    return run
