"""Who reads, computes and writes in a pass over the updates."""

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

from schemas.aggregation import Aggregation


class Threads(NamedTuple):
    """Who reads, computes and writes; readers None: who computes; writers None: whoever asks."""

    readers: Executor | None
    workers: Executor
    writers: Executor | None
    ahead: int  # pieces of a stream that are read beyond the one in hand
    side_by_side: int  # pieces that are computed beyond the one in hand

    @classmethod
    def start(cls, stack: ExitStack, local: bool, settings: Aggregation, threads: int | None) -> "Threads":
        if threads == 0:
            return cls(None, Now(), None, 0, 0)
        cores = max(2, min(8, os.cpu_count() or 1))

        def pool(name: str, count: int) -> Executor:
            return stack.enter_context(ThreadPoolExecutor(threads or count, f"aggregate-{name}"))

        readers = None if local else pool("read", settings.connections)
        return cls(readers, pool("compute", cores), pool("write", cores), ahead=2, side_by_side=cores)


class Now(Executor):
    """Does at once what it is given."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done
