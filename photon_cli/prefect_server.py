"""`prefect server start` for an embedded run, with SQLite transactions that wait for each other.

    python -m photon_cli.prefect_server --host 127.0.0.1 --port 4200

Prefect 3.8 begins most of its write transactions DEFERRED. One that has read before it writes then fails at once
(SQLITE_BUSY_SNAPSHOT, which no busy timeout covers) if another has written in between; the server answers 503 and
the client waits two seconds before it tries again. Every task with tags sends such a request before it starts,
to ask whether its tags have a concurrency limit: with four sites most rounds stood still for several seconds.
Begun IMMEDIATE, as Prefect's own comment on its SQLite settings advises, they queue for milliseconds.
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
