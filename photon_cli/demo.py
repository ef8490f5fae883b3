"""photon demo: a federation of four sites on this machine, on text that comes with Python."""

import re
from math import exp, log
from pathlib import Path

from photon_cli import demo_text as text_of
from photon_cli.prepare import prepare_sites
from photon_cli.progress import display
from photon_cli.run import run_embedded
from photon_cli.tree import read_world, sites_below
from photon_core.data.manifest import load_manifest
from photon_core.errors import FederationError
from photon_core.files import write_whole
from photon_core.run.history import history
from photon_core.run.line import on_line
from photon_core.run.run import run_of
from schemas.reading.world import World

WRITTEN = "Written by photon demo"
FILE = """\
# A federation of four sites that fits on a laptop. Written by photon demo; change it and continue with photon run.
run: demo
store: store
tokenizer: bytes
seed: 17
recipe: null

model: {{n_layers: 3, d_model: 192, n_heads: 6, vocab_size: 257, max_seq_len: 128}}

rounds: {{count: {rounds}, quorum: 3, deadline: 10m}}

local:
  steps: 60
  batch_size: 16
  optimizer: {{name: adamw, lr: 4.0e-3}}
  schedule: {{name: cosine, warmup_steps: 20, total_steps: 600}}

server: {{optimizer: nesterov, lr: 0.9, momentum: 0.3}}

data: {{evaluation_sequences: 48}}

sites:
{sites}"""

COUNT = re.compile(r"^(rounds: *\{ *count: *)\d+", re.MULTILINE)
SITE = """\
  - name: {name}
    state_dir: sites/{name}
    streams: [{{name: text, source: text/{name}.jsonl}}]
"""


def run_demo(folder: Path, rounds: int, quiet: bool) -> None:
    """Write the federation, prepare its sites, run it and print the result."""
    file = folder / "federation.yaml"
    with display(quiet) as show:
        show.say(f"Four sites train one model without sharing a line of text. Everything is in {folder}/")
        write_demo(folder, rounds)
    world = read_world(file)
    prepare_sites(world, None, quiet)
    run_embedded(world, None, quiet)
    unigram = unigram_perplexity(world)
    reached = on_line(history(run_of(world.federation)))[-1].metrics["perplexity"]
    print(f"perplexity:  {reached:.2f} a byte on held-out text; a unigram model has {unigram:.2f}")
    print(f"next:        photon demo --rounds {rounds + 3}   (or change {file}, and: photon run {file})")


def write_demo(folder: Path, rounds: int) -> list[str]:
    """Write the federation file and each site's text. In an existing file, only the number of rounds changes.

    Returns:
        the sites' names.

    Raises:
        FederationError: the existing file is not the demo's, or no longer contains `rounds: {count: ...`.
    """
    sites = {
        "networking": text_of.sources(text_of.NETWORKING),
        "concurrency": text_of.sources(text_of.CONCURRENCY),
        "tests": text_of.sources(text_of.TESTS),
        "documentation": text_of.topics(),
    }
    listing = "".join(SITE.format(name=name) for name in sites)
    file = folder / "federation.yaml"
    text = with_rounds(file, FILE.format(rounds=rounds, sites=listing), rounds)
    for name, texts in sites.items():
        text_of.write_site(folder / "text" / f"{name}.jsonl", texts)
    write_whole(file, text.encode())
    return list(sites)


def with_rounds(file: Path, new: str, rounds: int) -> str:
    """Text of a demo's file: the new text, or that of an existing file with another number of rounds.

    Raises:
        FederationError: the existing file is not the demo's, or no longer contains `rounds: {count: ...`.
    """
    if not file.exists():
        return new
    before = file.read_text("utf-8")
    text, found = COUNT.subn(rf"\g<1>{rounds}", before)
    if not found or WRITTEN not in before.partition("\n")[0]:
        raise FederationError(f"{file} is not as the demo wrote it. To continue, write: photon run {file}")
    return text


def unigram_perplexity(world: World) -> float:
    """Perplexity of all sites' held-out text, each under the site's unigram model."""
    data = [manifest for view in sites_below(world).values() if (manifest := load_manifest(view))]
    tokens = sum(manifest.valid_tokens for manifest in data)
    return exp(sum(log(manifest.unigram_perplexity) * manifest.valid_tokens for manifest in data) / tokens)
