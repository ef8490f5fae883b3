"""The forward pass compiled by torch.compile: fused kernels for the device and the shape.

The site's private folder caches the compiled code, for the next round's process. Child processes only.
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
    """`score`, compiled if `local.compile` is set; but not with FSDP, which gathers its blocks in Python.

    Args:
        view: site that trains.
        device: cpu or cuda.
        ranks: processes that share the work.
        log: log of the training; it gets a compilation failure, unless `local.compile` requires compilation.
    """
    setting = view.local.compile
    if ranks.sharded or not (device == "cuda" if setting is None else setting):
        return score
    folder = view.cache_dir.absolute() / FOLDER
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))  # TMPDIR does not outlast the round
    return Compiled(score, None if setting else log)


class Compiled:
    """A function that is compiled at its first call, for each shape of its arguments.

    Args:
        function: function to compile.
        log: log that gets a failure, after which the function runs without compilation; None to raise the failure.
        options: options of torch.compile.
    """

    def __init__(self, function: Callable[..., Any], log: Log | None, **options: Any) -> None:
        self._plain, self._log = function, log
        self._call: Callable[..., Any] = torch.compile(function, dynamic=False, **options)

    def __call__(self, *args: Any) -> Any:
        """
        Raises:
            TorchDynamoException: the function cannot be compiled.
        """
        try:
            return self._call(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            if self._log is None:
                raise
            text = " ".join(str(error).split("\n\n")[0].split())[:300]  # the rest is debugging advice
            self._log.append(Kind.COMPILE_FAILED, error=f"{type(error).__name__}: {text}")
            self._call = self._plain
            return self._call(*args)
