"""The threads that read, compute and write in a pass over the updates."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from photon_core.aggregation.engine.inputs import Limits

T = TypeVar("T")


class Threads(NamedTuple):
    """The executors of a pass. Without readers, the workers read. Without writers, the caller writes."""

    readers: Executor | None
    workers: Executor
    writers: Executor | None
    ahead: int  # pieces of a stream that are prefetched beyond the current one
    side_by_side: int  # pieces that are computed beyond the current one

    @classmethod
    def start(cls, stack: ExitStack, local: bool, limits: Limits) -> "Threads":
        if limits.threads == 0:
            return cls(None, InlineExecutor(), None, 0, 0)
        cores = max(2, min(8, os.cpu_count() or 1))

        def pool(name: str, count: int) -> Executor:
            return stack.enter_context(ThreadPoolExecutor(limits.threads or count, f"aggregate-{name}"))

        readers = None if local else pool("read", limits.connections)
        return cls(readers, pool("compute", cores), pool("write", cores), ahead=2, side_by_side=cores)

    def results(self, calls: Iterable[Callable[[], T]], cancel: Callable[[], None]) -> Generator[T, None, None]:
        """The results of the calls, in order. Further calls run while a result is in use.

        Args:
            calls: work items; the next one is drawn when a place is free.
            cancel: callback after a failure, so that no thread waits for work that is not done any more.
        """
        begun: deque[Future[T]] = deque()
        try:
            for call in calls:
                begun.append(self.workers.submit(call))
                if len(begun) > self.side_by_side:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        except BaseException:
            cancel()
            raise
        finally:
            for job in begun:
                if not job.cancel():
                    job.exception()  # it uses the files


class InlineExecutor(Executor):
    """Runs each call at once, in the caller's thread."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done
