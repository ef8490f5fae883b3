"""Commands on a real terminal: a pseudo-terminal of the kernel's, and what its screen would show."""

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

COLUMNS, ROWS = 120, 40
PART = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b[>=]|[\r\n\b\x07]|[^\x1b\r\n\b\x07]+")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


class Terminal:
    """A child process whose input, output and errors are one terminal; `keys` are typed, Ctrl-C is a signal."""

    def __init__(self, command: Sequence[str | Path], env: dict[str, str], folder: Path | None = None) -> None:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.said, self._at = "", ours
        self.process = subprocess.Popen(
            [*map(str, command)], stdin=theirs, stdout=theirs, stderr=theirs, env={**env, "TERM": "xterm"},
            cwd=folder, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C goes to who owns the terminal
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._at)

    def keys(self, text: str) -> None:
        os.write(self._at, text.encode())

    def until(self, *texts: str, seconds: float = 200) -> list[str]:
        """The screen, once all of `texts` are on it, in this order; what follows may not have come yet."""
        limit = time.monotonic() + seconds
        order = re.compile(".*".join(map(re.escape, texts)), re.DOTALL)
        while order.search("\n".join(self.screen())) is None:
            if not self._read(limit - time.monotonic()):
                raise AssertionError(f"no {texts!r} in {self.said!r}")
        return self.screen()

    def ended(self, seconds: float = 200) -> int:
        """The exit code, once everything was said."""
        limit = time.monotonic() + seconds
        while self._read(limit - time.monotonic()):
            pass
        return self.process.wait(max(0.1, limit - time.monotonic()))

    def screen(self) -> list[str]:
        """The lines that stand there, without empty ones at the end."""
        return screen(self.said)

    def _read(self, seconds: float) -> bool:
        poll = select.poll()  # select knows no descriptor beyond 1023, and streaming's datasets leave many open
        poll.register(self._at, select.POLLIN)
        if seconds <= 0 or not poll.poll(1000 * seconds):
            return False
        try:
            found = os.read(self._at, 65536)
        except OSError:  # how Linux says that the other side has closed it
            return False
        self.said += found.decode(errors="replace")
        return bool(found)


class _Page:
    """The lines of a terminal and its cursor."""

    def __init__(self) -> None:
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, text: str) -> None:
        line, end = self.lines[self.row].ljust(self.column), self.column + len(text)
        self.lines[self.row] = line[: self.column] + text + line[end:]
        self.column = end

    def to(self, row: int, column: int) -> None:
        self.row, self.column = max(0, row), max(0, column)
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def erase(self, from_column: int) -> None:
        self.lines[self.row] = self.lines[self.row][:from_column]

    def erase_below(self) -> None:
        self.erase(self.column)
        del self.lines[self.row + 1 :]


# What moves the cursor or erases, by the character or by the sequence without its number, which defaults to 1.
STEPS: dict[str, Callable[[_Page, int], None]] = {
    "\r": lambda page, _: page.to(page.row, 0),
    "\n": lambda page, _: page.to(page.row + 1, page.column),
    "\b": lambda page, _: page.to(page.row, page.column - 1),
    "\x1b[A": lambda page, amount: page.to(page.row - amount, page.column),
    "\x1b[B": lambda page, amount: page.to(page.row + amount, page.column),
    "\x1b[C": lambda page, amount: page.to(page.row, page.column + amount),
    "\x1b[K": lambda page, number: page.erase(0 if number == 2 else page.column),
    "\x1b[J": lambda page, _: page.erase_below(),
}


def screen(said: str) -> list[str]:
    """What a terminal shows of it, for the sequences that our commands use; any other is an error."""
    page = _Page()
    for part in PART.finditer(said):
        text, private, number, letter = part[0], part[1], part[2] or "", part[3]
        if step := STEPS.get(f"\x1b[{letter}" if letter else text):
            step(page, int(number) if number.isdecimal() else 1)
        elif letter is None and not text.startswith(("\x1b", "\x07")):
            page.write(text)
        else:
            assert letter is None or letter in "mt" or private, f"not known: {text!r}"
    while page.lines and not page.lines[-1].strip():
        page.lines.pop()
    return page.lines
