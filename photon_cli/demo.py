"""photon demo: a federation of four sites on this machine, on text that comes with Python."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from math import exp, log
from pathlib import Path
from sysconfig import get_path

from photon_cli.prepare import prepare_with
from photon_cli.progress import display
from photon_cli.run import run_embedded
from photon_core.data.manifest import load_manifest
from photon_core.errors import FederationError
from photon_core.files import write_whole
from photon_core.run.history import history
from photon_core.run.line import on_line
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.view import views

SITE_BYTES = 1_200_000  # most text of a site: in two minutes a small model learns nothing from more
PIECE_BYTES = 2_000  # shortest document, unless the whole file is shorter
NETWORKING = ("email", "http", "urllib", "xmlrpc", "wsgiref", "html", "ssl.py", "socket.py", "socketserver.py",
              "smtplib.py", "ftplib.py", "imaplib.py", "poplib.py", "ipaddress.py", "mailbox.py")  # fmt: skip
CONCURRENCY = ("asyncio", "concurrent", "multiprocessing", "threading.py", "queue.py", "selectors.py", "sched.py",
               "subprocess.py", "contextlib.py", "signal.py", "_pydecimal.py")  # fmt: skip
TESTS = ("unittest", "doctest.py", "test", "idlelib/idle_test")

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
        federation = load_federation(file)
        for view in views(federation):
            prepare_with(show, view)
    run_embedded(federation, file, None, quiet)
    unigram = _unigram_perplexity(federation)
    reached = on_line(history(run_of(federation)))[-1].metrics["perplexity"]
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
        "networking": _sources(NETWORKING),
        "concurrency": _sources(CONCURRENCY),
        "tests": _sources(TESTS),
        "documentation": iter(import_module("pydoc_data.topics").topics.values()),
    }
    file, listing = folder / "federation.yaml", "".join(SITE.format(name=name) for name in sites)
    text = FILE.format(rounds=rounds, sites=listing)
    if file.exists():
        before = file.read_text("utf-8")
        text, found = COUNT.subn(rf"\g<1>{rounds}", before)
        if not found or WRITTEN not in before.partition("\n")[0]:
            raise FederationError(f"{file} is not as the demo wrote it. To continue, write: photon run {file}")
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for name, texts in sites.items():
        path = folder / "text" / f"{name}.jsonl"
        if not path.exists():
            write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in _documents(texts)).encode())
    write_whole(file, text.encode())
    return list(sites)


def _sources(names: tuple[str, ...]) -> Iterator[str]:
    """Sources of the standard library's modules and packages of these names."""
    root = Path(get_path("stdlib"))
    for name in names:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []:
            try:
                yield file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # some of its tests are wrongly encoded on purpose


def _documents(texts: Iterator[str]) -> Iterator[str]:
    """Pieces that end between top-level definitions, without duplicates, up to SITE_BYTES in total."""
    seen: set[str] = set()
    total = 0
    for text in texts:
        piece = ""
        for part in (*text.split("\n\n\n"), None):
            if part is not None:
                piece = f"{piece}\n\n\n{part}" if piece else part
            if len(piece) >= PIECE_BYTES or (part is None and piece.strip()):
                if piece not in seen:
                    seen.add(piece)
                    yield piece
                    total += len(piece)
                piece = ""
            if total >= SITE_BYTES:
                return


def _unigram_perplexity(federation: Federation) -> float:
    """Perplexity of all sites' held-out text, each under the site's unigram model."""
    data = [manifest for view in views(federation) if (manifest := load_manifest(view))]
    tokens = sum(manifest.valid_tokens for manifest in data)
    return exp(sum(log(manifest.unigram_perplexity) * manifest.valid_tokens for manifest in data) / tokens)
