"""photon export and photon generate: a round's model as a folder, and text from it."""

import sys
from contextlib import ExitStack
from pathlib import Path

from photon_cli.progress import display
from photon_core.formatting import amount
from schemas.federation import Federation

TOKENS = 100  # default number of new tokens


def export(federation: Federation, t: int | None, folder: Path, quiet: bool) -> None:
    """Write the folder and print what it contains."""
    from photon_core.export.export import export_round

    with display(quiet) as show:
        show.activity("export", f"{'the latest round' if t is None else f'round {t}'} to {folder}")
        manifest = export_round(federation, t, folder)
        show.finish("export")
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"round {manifest.round} of run {federation.run} is in {folder} ({amount(total)}), for transformers")


def generate(
    federation: Federation,
    t: int | None,
    prompt: str,
    tokens: int | None,
    temperature: float,
    top_k: int,
    seed: int,
) -> None:
    """Print the prompt and its continuation as it is generated. `tokens`: None for what fits, at most 100."""
    from photon_core.export.generate import Decoding
    from photon_core.export.generate import generate as continue_text

    if tokens is None:
        tokens = min(TOKENS, federation.model.max_seq_len - 1)
    unsaid = [prompt]

    def say(text: str) -> None:
        loading.close()
        sys.stdout.write("".join([*unsaid, text]))
        sys.stdout.flush()
        unsaid.clear()

    with ExitStack() as loading:
        show = loading.enter_context(display(quiet=not sys.stdout.isatty()))  # scripts get the text only
        show.activity("generate", "loading the model")
        continue_text(federation, t, prompt, Decoding(tokens, temperature, top_k, seed), say)
        say("\n")
