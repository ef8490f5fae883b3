"""The forward pass compiled by torch.compile: kernels that are fused and written for the device and the shape.

What compiling makes is kept in the site's private folder: the next round's process, which compiles anew, finds it
there. Child processes only.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from photon_core.evidence.events import Kind, Log
from photon_core.model.decoder import score
from photon_core.training.parallel.ranks import Ranks
from schemas.view import SiteView

FOLDER = "compiled"


def choose_score(view: SiteView, device: str, ranks: Ranks, log: Log) -> Callable[..., Any]:
    """`score`, compiled if `local.compile` says so; FSDP gathers its blocks in Python, and stays as it is.

    Args:
        view: who trains.
        device: cpu or cuda.
        ranks: the processes that share the work.
        log: of the training; it has a failure, if the file leaves it open whether to compile.
    """
    wanted = view.local.compile
    if ranks.sharded or not (device == "cuda" if wanted is None else wanted):
        return score
    folder = view.cache_dir.absolute() / FOLDER
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))  # TMPDIR is gone after the round
    return Compiled(score, None if wanted else log)


class Compiled:
    """A function that is compiled when it is first called, for each shape of its arguments.

    Args:
        function: what to compile.
        log: gets a failure, after which the function is called as it is; None to raise it.
        options: of torch.compile.
    """

    def __init__(self, function: Callable[..., Any], log: Log | None, **options: Any) -> None:
        self._plain, self._log = function, log
        self._call: Callable[..., Any] = torch.compile(function, dynamic=False, **options)

    def __call__(self, *args: Any) -> Any:
        """
        Raises:
            TorchDynamoException: it cannot be compiled.
        """
        try:
            return self._call(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            if self._log is None:
                raise
            said = " ".join(str(error).split("\n\n")[0].split())[:300]  # what follows tells where to look
            self._log.append(Kind.COMPILE_FAILED, error=f"{type(error).__name__}: {said}")
            self._call = self._plain
            return self._call(*args)
