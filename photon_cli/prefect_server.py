"""`prefect server start` with SQLite transactions that wait for each other: `photon server`, and embedded runs.

    photon server --host 0.0.0.0 --port 4200

Prefect 3.8 begins most of its write transactions DEFERRED. One that has read before it writes then fails at once
(SQLITE_BUSY_SNAPSHOT, which no busy timeout covers) if another has written in between; the server answers 503 and
the client waits two seconds before it tries again. Every task with tags sends such a request before it starts,
to ask whether its tags have a concurrency limit: with four sites most rounds stood still for several seconds.
With four workers on a plain server, two requests were also seen to wait for each other's lock until the busy
timeout of 60 s had passed, twice in a round. Begun IMMEDIATE, as Prefect's own comment on its SQLite settings
advises, they queue for milliseconds.
"""

import runpy
import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

from prefect.server.database.configurations import AioSqliteConfiguration

_begin_as_asked = AioSqliteConfiguration.begin_transaction


def begin_immediate(
    configuration: Any, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    """Begin a transaction that holds the write lock from its start."""
    return _begin_as_asked(configuration, session, with_for_update=True)


if __name__ == "__main__":
    AioSqliteConfiguration.begin_transaction = begin_immediate
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
