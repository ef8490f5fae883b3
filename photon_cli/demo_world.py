"""photon demo --world: a tree of two federations with three sites each, on text that comes with Python.

The files are those of examples/world. One federation has prose, the other one code without comments.
"""

from pathlib import Path

from photon_cli import demo_text as text_of
from photon_cli.demo import unigram_perplexity, with_rounds
from photon_cli.prepare import prepare_sites
from photon_cli.progress import display
from photon_cli.run import run_embedded
from photon_cli.tree import read_world
from photon_core.errors import FederationError
from photon_core.files import write_whole

ROUNDS = 3
SITE_BYTES = 450_000  # of text a site: one pass of the default rounds, and some more
TREE = {"prose": ("reference", "docstrings", "comments"), "code": ("networking", "concurrency", "tests")}
WRITTEN = "Written by photon demo --world"
COMMON = """\
tokenizer: bytes
seed: 17
recipe: unlike-sites

model: {n_layers: 3, d_model: 128, n_heads: 4, vocab_size: 257, max_seq_len: 128}
local: {steps: 30, batch_size: 16, schedule: {total_steps: 360}}
data: {evaluation_sequences: 48}
"""
ROOT = """\
# A tree of two federations. Written by photon demo --world; change it and resume with photon run.
run: world
store: stores/world
{common}
rounds: {{count: {rounds}, quorum: 1, deadline: 20m}}

worldlm: {{key_layers: 1}}     # the last block stays at each node; the other blocks are averaged over the world

federations:
  - {{name: prose, federation: prose.yaml}}
  - {{name: code, federation: code.yaml}}
"""
MEMBER = """\
# A member of world.yaml: three sites of {name}. Written by photon demo --world.
run: {name}
store: stores/{name}
parent: {{store: stores/world, run: world, member: {name}}}
{common}
rounds: {{quorum: 2, deadline: 10m}}

worldlm: {{key_layers: 1, rounds: 2}}     # its own rounds in each round of the world

sites:
{sites}"""
SITE = """\
  - name: {site}
    state_dir: sites/{name}/{site}
    streams: [{{name: text, source: text/{name}/{site}.jsonl}}]
"""


def run_demo_world(folder: Path, rounds: int, quiet: bool) -> None:
    """Write the files, prepare the sites, run the tree, and print the result."""
    with display(quiet) as show:
        show.say(f"Two federations of three sites each train in one tree. Everything is in {folder}/")
        file = write_demo_world(folder, rounds)
    world = read_world(file)
    prepare_sites(world, None, quiet)
    run_embedded(world, None, quiet)
    unigram = unigram_perplexity(world)
    print(f"perplexity:  a byte, on held-out text; the sites' unigram models have {unigram:.2f}")
    print(f"next:        photon demo --world --rounds {rounds + 2}   (or photon status {file})")


def write_demo_world(folder: Path, rounds: int = ROUNDS) -> Path:
    """Write the tree's files and each site's text. Of existing files, change only the number of rounds.

    Returns:
        the root's file.

    Raises:
        FederationError: an existing file is not the demo's, or no longer contains `rounds: {count: ...`.
    """
    files = {folder / name: text for name, text in files_of(rounds).items()}
    root = next(iter(files))
    files[root] = with_rounds(root, files[root], rounds)
    for file in files:
        if file.exists() and WRITTEN not in file.read_text("utf-8").partition("\n")[0]:
            raise FederationError(f"{file} is not as the demo wrote it. To continue, write: photon run {root}")
    write_texts(folder / "text")
    for file, text in files.items():
        if file == root or not file.exists():
            write_whole(file, text.encode())
    return root


def files_of(rounds: int) -> dict[str, str]:
    """File name -> text, of the tree's files; the root's is the first."""
    files = {"world.yaml": ROOT.format(common=COMMON, rounds=rounds)}
    for name, sites in TREE.items():
        listing = "".join(SITE.format(name=name, site=site) for site in sites)
        files[f"{name}.yaml"] = MEMBER.format(name=name, common=COMMON, sites=listing)
    return files


def write_texts(folder: Path) -> None:
    """Write each site's documents."""
    modules = ["*.py"]
    for site, texts in {
        "prose/reference": text_of.topics(),
        "prose/docstrings": text_of.docstrings(text_of.sources(modules)),
        "prose/comments": text_of.comments(text_of.sources(modules)),
        "code/networking": text_of.code(text_of.sources(text_of.NETWORKING)),
        "code/concurrency": text_of.code(text_of.sources(text_of.CONCURRENCY)),
        "code/tests": text_of.code(text_of.sources(text_of.TESTS)),
    }.items():
        text_of.write_site(folder / f"{site}.jsonl", texts, SITE_BYTES)
