"""photon export and photon generate: a node's model as a folder, and text from it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from photon_cli.choice import Choice
from photon_cli.progress import display
from photon_core.formatting import amount

if TYPE_CHECKING:
    from photon_core.export.generate import Decoding
    from photon_core.export.model import NodeModel
    from photon_core.export.node import Node

TOKENS = 100  # default number of new tokens


@contextmanager
def opened(node: "Node", choice: Choice) -> Iterator["NodeModel"]:
    """The chosen model of a node, which can be read in the block."""
    from photon_core.export.states import node_model

    with TemporaryDirectory(prefix="photon-model-") as scratch:
        yield node_model(node, choice.trained, choice.t, Path(scratch))


def export(node: "Node", choice: Choice, folder: Path, quiet: bool) -> None:
    """Write the folder and print what it contains."""
    from photon_core.export.export import check_place, export_model

    check_place(node, folder)
    with display(quiet) as show:
        show.activity("export", f"the model of {node.name} to {folder}")
        with opened(node, choice) as model:
            export_model(model, folder)
        show.finish("export")
    total = sum(path.stat().st_size for path in folder.iterdir())
    what = f"round {model.round} of run {node.federation.run}"
    if node.names:
        what = f"the model of {node.name}, {model.origin.replace('`', '')}"
    print(f"{what} is in {folder} ({amount(total)}), for transformers")


def generate(node: "Node", choice: Choice, prompt: str, decoding: "Decoding") -> None:
    """Print the prompt and its continuation as it is generated."""
    from photon_core.export.generate import check_tokens
    from photon_core.export.generate import generate as continue_text

    check_tokens(node.federation.model, decoding.tokens)
    unsaid = [prompt]

    def say(text: str) -> None:
        loading.close()
        sys.stdout.write("".join([*unsaid, text]))
        sys.stdout.flush()
        unsaid.clear()

    with ExitStack() as loading, opened(node, choice) as model:
        show = loading.enter_context(display(quiet=not sys.stdout.isatty()))  # scripts get the text only
        show.activity("generate", "loading the model")
        continue_text(model, prompt, decoding, say)
        say("\n")
