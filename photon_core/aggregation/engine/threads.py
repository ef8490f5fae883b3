"""Who reads, computes and writes in a pass over the updates."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

from photon_core.aggregation.engine.inputs import Limits

T = TypeVar("T")


class Threads(NamedTuple):
    """Who reads, computes and writes; readers None: who computes; writers None: whoever asks."""

    readers: Executor | None
    workers: Executor
    writers: Executor | None
    ahead: int  # pieces of a stream that are read beyond the one in hand
    side_by_side: int  # pieces that are computed beyond the one in hand

    @classmethod
    def start(cls, stack: ExitStack, local: bool, limits: Limits) -> "Threads":
        if limits.threads == 0:
            return cls(None, Now(), None, 0, 0)
        cores = max(2, min(8, os.cpu_count() or 1))

        def pool(name: str, count: int) -> Executor:
            return stack.enter_context(ThreadPoolExecutor(limits.threads or count, f"aggregate-{name}"))

        readers = None if local else pool("read", limits.connections)
        return cls(readers, pool("compute", cores), pool("write", cores), ahead=2, side_by_side=cores)

    def results(self, calls: Iterable[Callable[[], T]], give_up: Callable[[], None]) -> Generator[T, None, None]:
        """What the calls return, in their order; some are under way beyond the one that is given out.

        Args:
            calls: what to do; the next one is asked for when there is room for it.
            give_up: called after a failure: nobody may wait for what will not be done any more.
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
            give_up()
            raise
        finally:
            for job in begun:
                if not job.cancel():
                    job.exception()  # it uses the files


class Now(Executor):
    """Does at once what it is given."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done
