"""The main function of a forked child: detach, run one function, send back its result or its error."""

import ctypes
import inspect
import os
import pickle
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from photon_core.errors import ChildFailed, PhotonError
from photon_core.jobs.channel import Channel
from photon_core.jobs.scratch import keep_ledger
from schemas.server_errors import cause, foreign, told

REQUEST = "request.pickle"
PR_SET_PDEATHSIG = 1


def run_child(folder: Path, channel: int, log: str, threads: int, server: int) -> int:
    """Run the job in `folder` and answer over `channel`.

    Args:
        folder: TMPDIR of the child, with the request in it.
        channel: descriptor of the stream socket to the launcher.
        log: file to which standard output and error are appended.
        threads: number of intra-operation threads of torch.
        server: process id of the fork server; the child dies with it.

    Returns:
        The exit code.
    """
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _redirect(log)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    keep_ledger(folder)
    answer = Channel(socket.socket(fileno=channel))
    try:
        _set_threads(threads)
        result = _call(folder, lambda values: answer.send(("report", values)))
        message = ("result", result)
        pickle.dumps(message)
    except BaseException as error:
        message = ("error", portable(error))
        with suppress(OSError):  # the log may be on the full disk that caused the error
            _print(error)
    answer.send(message)
    for output in (sys.stdout, sys.stderr):
        with suppress(OSError):
            output.flush()
    return 0


def _redirect(log: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.close(nothing)


def _set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _call(folder: Path, report: Callable[[dict[str, Any]], None]) -> Any:
    place, call = pickle.loads((folder / REQUEST).read_bytes())
    os.environ.update({**place["environment"], "TMPDIR": str(folder)})
    os.chdir(place["folder"])
    sys.path.extend(entry for entry in place["path"] if entry not in sys.path)
    function = pickle.loads(call)
    return function(report=report) if _takes_report(function) else function()


def _takes_report(function: Callable[..., Any]) -> bool:
    try:
        return "report" in inspect.signature(function).parameters
    except ValueError:  # some functions written in C do not expose their parameters
        return False


def _print(error: BaseException) -> None:
    """Print the error with its traceback into the log, but never a server's own text."""
    if foreign(error):
        traceback.print_tb(error.__traceback__)
        print(f"{type(error).__name__}: {cause(error)}", file=sys.stderr)
    else:
        traceback.print_exception(error)


def portable(error: BaseException) -> Exception:
    """The error in a form that the launcher can unpickle: a PhotonError as it is, others as text and traceback."""
    if isinstance(error, PhotonError):
        try:
            copy = pickle.loads(pickle.dumps(error))
            if type(copy) is type(error) and str(copy) == str(error):
                return error
        except Exception:  # not picklable: use the plain form below
            pass
    lines = "".join(traceback.format_tb(error.__traceback__, limit=-3)).rstrip()
    return ChildFailed(f"{type(error).__name__}: {told(error)}\n{lines}")
