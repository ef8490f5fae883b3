"""The embedded run's Prefect server does not turn simultaneous writers away, and serves many processes at once."""

import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.typing import Subprotocol

from photon_cli.prefect.embedded import EmbeddedServer, hold_port
from tests.database import give_database

PREFECT = Subprotocol("prefect")


@pytest.mark.slow
def test_simultaneous_requests_are_all_answered(tmp_path: Path) -> None:
    with EmbeddedServer(give_database(tmp_path)) as server:
        server.wait()

        def post(number: int) -> int:
            # the question that a tagged task asks before it starts, between writes of other clients
            path, body = (
                ("v2/concurrency_limits/increment-with-lease", {"names": [f"tag:{number}"], "slots": 1})
                if number % 2
                else ("flows/", {"name": f"flow {number}"})
            )
            request = urllib.request.Request(
                f"{server.url}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(post, range(200)))
    assert set(answers) <= {200, 201}, answers


@pytest.mark.slow
def test_open_websockets_take_no_requests_place(tmp_path: Path) -> None:
    """Every process of a flow run holds two while it runs."""
    from websockets.sync.client import connect

    with EmbeddedServer(give_database(tmp_path)) as server, ExitStack() as sockets:
        server.wait()
        for _ in range(120):
            sockets.enter_context(connect(f"ws://127.0.0.1:{server.port}/api/events/in", subprotocols=[PREFECT]))
        with urllib.request.urlopen(f"{server.url}/api/health", timeout=60) as answer:
            assert answer.status == 200


def test_a_held_port_is_for_the_server_alone() -> None:
    with hold_port() as held, socket.socket() as server, socket.socket() as stranger:
        place = held.getsockname()
        with pytest.raises(OSError, match="in use"):
            stranger.bind(place)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Prefect does
        server.bind(place)
        server.listen()
        socket.create_connection(place).close()
