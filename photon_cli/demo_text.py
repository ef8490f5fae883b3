"""Text that comes with Python, for the demos: code of its library, and prose about that code."""

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from sysconfig import get_path

from photon_core.files import write_whole

SITE_BYTES = 1_200_000  # most text of a site: in two minutes a small model learns nothing from more
PIECE_BYTES = 2_000  # shortest document, unless the whole file is shorter
NETWORKING = ("email", "http", "urllib", "xmlrpc", "wsgiref", "html", "ssl.py", "socket.py", "socketserver.py",
              "smtplib.py", "ftplib.py", "imaplib.py", "poplib.py", "ipaddress.py", "mailbox.py")  # fmt: skip
CONCURRENCY = ("asyncio", "concurrent", "multiprocessing", "threading.py", "queue.py", "selectors.py", "sched.py",
               "subprocess.py", "contextlib.py", "signal.py", "_pydecimal.py")  # fmt: skip
TESTS = ("unittest", "doctest.py", "test", "idlelib/idle_test")
COMMENT = re.compile(r"^ *# ?(.*)$", re.MULTILINE)
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def topics() -> Iterator[str]:
    """The language reference that `help()` shows."""
    return iter(import_module("pydoc_data.topics").topics.values())


def sources(names: Iterable[str]) -> Iterator[str]:
    """Sources of the standard library's modules and packages that match these patterns."""
    root = Path(get_path("stdlib"))
    for path in (found for name in names for found in sorted(root.glob(name))):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            try:
                yield file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # some of its tests are wrongly encoded on purpose


def code(texts: Iterable[str]) -> Iterator[str]:
    """Sources without comments and docstrings."""
    for tree in _parsed(texts):
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        yield ast.unparse(tree).replace("\n\n", "\n\n\n")


def docstrings(texts: Iterable[str]) -> Iterator[str]:
    """Docstrings of each source."""
    for tree in _parsed(texts):
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, DOCUMENTED))
        yield "\n\n\n".join(filter(None, found))


def comments(texts: Iterable[str]) -> Iterator[str]:
    """Comment lines of each source."""
    return ("\n".join(COMMENT.findall(text)) for text in texts)


def _parsed(texts: Iterable[str]) -> Iterator[ast.Module]:
    return (tree for text in texts if (tree := _parse(text)) is not None)


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings(), suppress(SyntaxError, ValueError):  # some tests are wrong on purpose
        warnings.simplefilter("ignore")
        return ast.parse(text)
    return None


def write_site(path: Path, texts: Iterable[str], most: int = SITE_BYTES) -> None:
    """Write a site's documents, up to `most` bytes, unless the file exists."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in _documents(texts, most)).encode())


def _documents(texts: Iterable[str], most: int) -> Iterator[str]:
    """Pieces that end between top-level definitions, without duplicates, up to `most` bytes in total."""
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
            if total >= most:
                return
