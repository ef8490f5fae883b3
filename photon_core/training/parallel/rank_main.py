"""The program of one rank, which Composer's launcher starts for a job over several devices, with a folder.

The folder belongs to the launching process (see launch.py). It has the request, the pipe of the reports, and the
answers.
"""

import ctypes
import json
import os
import pickle
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from photon_core.files import write_whole
from photon_core.jobs.child import PR_SET_PDEATHSIG, portable
from photon_core.jobs.scratch import keep_ledger
from photon_core.training.parallel.ranks import ANSWER, LEDGER, REPORTS, REQUEST


def main(folder: Path) -> int:
    """Train this rank's part, and write the answer to a file. Exit code 1 has the launcher end the other ranks."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = int(os.environ["RANK"])
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)  # all ranks share it: it has streaming's locks
    keep_ledger(folder, LEDGER.format(rank))
    try:
        answer, code = ("result", _train(folder)), 0
    except BaseException as error:
        traceback.print_exc()
        answer, code = ("error", portable(error)), 1
    write_whole(folder / ANSWER.format(rank), pickle.dumps(answer))
    return code


def _train(folder: Path) -> Any:
    import photon_core.training.preload  # noqa: F401  (Trainers make the same lookups here)
    from photon_core.hardware.device import choose_device
    from photon_core.training.loop import run_local_steps
    from photon_core.training.parallel.ranks import join_ranks
    from photon_core.training.state.checkpoint import Checkpoints

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # composer has installed its handlers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = pickle.loads((folder / REQUEST).read_bytes())
    job, state = request["job"], request["folder"]
    ranks = join_ranks(choose_device(job.view.local), request["sharded"])
    with (folder / REPORTS).open("wb", buffering=0) as pipe:

        def report(values: dict[str, Any]) -> None:
            pipe.write(json.dumps(values).encode() + b"\n")

        checkpoints = Checkpoints(state, job)
        return run_local_steps(job, report, state, request["written"], checkpoints, request["micro_batch"], ranks)


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    for output in (sys.stdout, sys.stderr):
        with suppress(OSError):
            output.flush()
    os._exit(status)  # exit handlers of the imported packages are not needed here, and could wait for other ranks
