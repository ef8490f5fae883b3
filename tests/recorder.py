"""A network of a test, whose only resolver and only way out are a recorder: it catches every call home.

As root. What runs in it reaches its own loopback. Every name that is looked up beyond /etc/hosts, every TCP
connection that is tried and every UDP packet that is sent beyond loopback is recorded, and leads nowhere.
"""

import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESOLVER = ("127.0.0.53", 53)
NOWHERE = "198.18.0.9"  # what every name means here; of the addresses that are for tests of networks
ALL_PROTOCOLS, IPV4, IPV6, TCP, UDP, SYN, SYN_ACK = 3, 4, 6, 6, 17, 0x02, 0x12
READY = "ready"


class Recorder:
    """The network, seen from outside: how a command gets into it, and what was recorded so far."""

    def __init__(self, keeper: int, record: Path) -> None:
        self.keeper, self._record = keeper, record

    def inside(self, folder: Path, *command: str | Path) -> list[str]:
        """The command line that runs `command` in the network; with `folder` as the current one."""
        enter = ["nsenter", "--target", str(self.keeper), "--net", "--mount", f"--wd={folder}", "--"]
        return [*enter, *map(str, command)]

    def recorded(self) -> list[str]:
        return self._record.read_text().splitlines()


@contextmanager
def recorder() -> Iterator[Recorder]:
    """The network, for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="photon-recorder-") as name:
        record = Path(name, "record")
        record.touch()
        keeper = subprocess.Popen(
            ["unshare", "--net", "--mount", sys.executable, "-m", "tests.recorder", name],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        try:
            assert keeper.stdout is not None and keeper.stdout.readline().strip() == READY, "no separate network"
            yield Recorder(keeper.pid, record)
        finally:
            keeper.kill()
            keeper.wait()


def keep(folder: Path) -> None:
    """Inside: make the network, then record until killed."""
    own = socket.gethostname()
    files = {
        "resolv.conf": f"nameserver {RESOLVER[0]}\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "hosts": f"127.0.0.1 localhost {own}\n::1 localhost {own}\n",
    }
    for file, text in files.items():
        (folder / file).write_text(text)
        subprocess.run(["mount", "--bind", folder / file, f"/etc/{file}"], check=True)
    for command in (
        "link set lo up",
        "link add out type veth peer name recorder",
        "link set out arp off",
        "link set recorder up",
        "link set out up",
        "address add 198.18.0.1/24 dev out",
        "address add fd00::1/64 dev out nodad",
        "route add default dev out",
        "-6 route add default dev out",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    with (folder / "record").open("a", buffering=1) as record:
        resolver, packets = (
            socket.socket(type=socket.SOCK_DGRAM),
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM),
        )
        resolver.bind(RESOLVER)
        packets.bind(("recorder", ALL_PROTOCOLS))
        threading.Thread(target=lambda: [print(line, file=record) for line in questions(resolver)]).start()
        print(READY, flush=True)
        for line in attempts(packets):
            print(line, file=record)


def questions(resolver: socket.socket) -> Iterator[str]:
    """The names that are looked up; each means NOWHERE."""
    while True:
        asked, who = resolver.recvfrom(4096)
        name, at = [], 12
        while asked[at]:
            name.append(asked[at + 1 : at + 1 + asked[at]].decode(errors="replace"))
            at += 1 + asked[at]
        (kind,) = struct.unpack_from(">H", asked, at + 1)
        answers = 1 if kind == 1 else 0  # type A
        head = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, answers, 0, 0)
        answer = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(NOWHERE)
        resolver.sendto(head + asked[12 : at + 5] + answer * answers, who)
        yield f"lookup of {'.'.join(name)}"


def attempts(packets: socket.socket) -> Iterator[str]:
    """The connections that are tried and the packets that are sent."""
    while True:
        packet = packets.recv(65536)
        if packet[0] >> 4 == IPV4:
            protocol, to = packet[9], socket.inet_ntoa(packet[16:20])
            body = packet[4 * (packet[0] & 15) :]
        elif packet[0] >> 4 == IPV6:
            protocol, to = packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40])
            body = packet[40:]
        else:
            continue
        if protocol == UDP or (protocol == TCP and body[13] & SYN_ACK == SYN):
            yield f"{'TCP' if protocol == TCP else 'UDP'} to {to} port {struct.unpack_from('>H', body, 2)[0]}"


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
