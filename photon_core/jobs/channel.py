"""Messages between the launcher and one of its children: length-prefixed pickles over a socket.

Both ends are Photon's processes on one machine, parent and child. Nothing from elsewhere is ever unpickled.
"""

import pickle
import select
import socket
import struct
from collections.abc import Iterable
from typing import Any

HEADER = struct.Struct("!Q")


def readable(descriptors: Iterable[int], timeout: float | None = None) -> set[int]:
    """The descriptors that have input, or whose peer is gone. Not select(): it ends at descriptor 1023.

    Args:
        timeout: maximum seconds to wait for the first of them; no limit if None.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)}


class ChannelClosed(Exception):
    """The peer is gone."""


class Channel:
    """One end of a connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        """Send one message. Blocks while the peer does not read."""
        body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._socket.sendall(HEADER.pack(len(body)) + body)

    def receive(self, timeout: float) -> Any:
        """The next message, or None if none is complete within `timeout` seconds.

        Raises:
            ChannelClosed: the peer has closed its socket or died.
        """
        while not self._complete():
            if not readable([self._socket.fileno()], timeout):
                return None
            try:
                data = self._socket.recv(1 << 20)
            except ConnectionError as error:
                raise ChannelClosed from error
            if not data:
                raise ChannelClosed
            self._buffer += data
        (length,) = HEADER.unpack_from(self._buffer)
        end = HEADER.size + length
        body = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return pickle.loads(body)

    def _complete(self) -> bool:
        if len(self._buffer) < HEADER.size:
            return False
        (length,) = HEADER.unpack_from(self._buffer)
        return len(self._buffer) >= HEADER.size + length

    def close(self) -> None:
        self._socket.close()
