"""`prefect server start` with an SQLite that serves many sites at once: `photon server`, and embedded runs.

    photon server --host 0.0.0.0 --port 4200

Prefect 3.8 begins most of its write transactions DEFERRED. A transaction that has read before it writes fails at
once if another has written in between (SQLITE_BUSY_SNAPSHOT, which no busy timeout covers). The server then
answers 503, and the client retries after two seconds. Every task with tags sends such a request before it starts,
to learn whether its tags have a concurrency limit: with four sites, most rounds stalled for several seconds. With
four workers on a plain server, two requests were also seen to wait for each other's lock until the busy timeout of
60 s, twice in a round. Begun IMMEDIATE, as Prefect's comment on its SQLite settings advises, they queue for
milliseconds.

On SQLite the server also serves at most a hundred requests at once, and counts an open websocket as one. Every
process of a flow run holds two, so that about fifty busy sites blocked all requests: the server hung permanently.
Here websockets, which hold no transaction, do not count.

On any address but loopback the server does not start without a password (exposure.py): anyone who reaches it can
run any command at every site. Nor does it fetch the types of workers from the internet: Prefect includes a list.
"""

import runpy
import sys
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from prefect.cli import _server_utils
from prefect.server.api import collections
from prefect.server.api.server import RequestLimitMiddleware
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

from photon_cli.prefect.exposure import check_exposure

_begin_as_asked = AioSqliteConfiguration.begin_transaction
_limited = RequestLimitMiddleware.__call__
_in_an_address = _server_utils._format_host_for_url


def begin_immediate(
    configuration: Any, session: Any, with_for_update: bool = False
) -> AbstractAsyncContextManager[Any]:
    """Begin a transaction that holds the write lock from the start."""
    del with_for_update  # as the caller has it
    return _begin_as_asked(configuration, session, with_for_update=True)


async def limit_requests(middleware: RequestLimitMiddleware, scope: Any, receive: Any, send: Any) -> None:
    """Serve websockets at once, and requests within the limit."""
    serve = middleware.app if scope["type"] == "websocket" else partial(_limited, middleware)
    await serve(scope, receive, send)


def checked_host(host: str) -> str:
    """Check the host, then format it. `prefect server start` calls this first, with the host from its options,
    environment and profile. A host that lets anyone use the server ends the process."""
    if problem := check_exposure(host, PREFECT_SERVER_API_AUTH_STRING.value()):
        print(f"photon: {problem}", file=sys.stderr)
        raise SystemExit(2)
    return _in_an_address(host)


if __name__ == "__main__":
    _server_utils._format_host_for_url = checked_host
    collections.KNOWN_VIEWS.update(dict.fromkeys(collections.KNOWN_VIEWS, ""))
    AioSqliteConfiguration.begin_transaction = begin_immediate
    RequestLimitMiddleware.__call__ = limit_requests
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
