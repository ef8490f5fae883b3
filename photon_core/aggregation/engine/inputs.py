"""Inputs and result of one pass: sources, rules, the server's step, the folder of the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from photon_core.aggregation.rules import Rules
from photon_core.run.run import Run
from photon_core.update.codecs.registry import Codec
from schemas.manifests import FileEntry, RoundManifest, UpdateManifest
from schemas.sections.aggregation import Aggregation
from schemas.sections.server import Server

DEFAULTS = Aggregation()


class Source(NamedTuple):
    """One member's contribution: an update with a checked manifest, the folder of its files, and their codec."""

    update: UpdateManifest
    folder: str
    codec: Codec


@dataclass(frozen=True)
class Pass:
    """One pass over the contributions to a round.

    Args:
        run, t: run and round.
        base: manifest of round t-1, whose model the sources started from.
        sources: contributions by name, in the order of names, which is the order of every sum.
        rules: rules that combine the contributions, by tensor.
        server: server optimizer and its settings.
        folder: folder of the result; None to compute only the norms.
        lr_scale: learning-rate factor that the guard has applied to server.lr already; it scales the state, too.
        stem: start of the names of the model's files.
        look: flag: inspect single members, for their norms and cosines, and to name a member with NaN. Without it
            only the mean is known, as is required where no member's own change may be seen.
    """

    run: Run
    t: int
    base: RoundManifest
    sources: Mapping[str, Source]
    rules: Rules
    server: Server
    folder: str | None
    lr_scale: float = 1.0
    stem: str = ""
    look: bool = True


class Result(NamedTuple):
    """The files that a pass has written, and its norms; see `Norms.result` and `Pairs.result`."""

    model: list[FileEntry]
    optimizer: list[FileEntry]
    norms: dict[str, float]


@dataclass(frozen=True)
class Limits:
    """Resources of a pass. No bit of the result depends on them, apart from the size of the files.

    Args:
        shard_bytes: maximum size of the files.
        memory_bytes: memory for prefetched pieces.
        connections: concurrent requests to a store that is not a local disk.
        threads: threads that prefetch, threads that compute and threads that write, each this many; 0 for none;
            by default as many as the machine has cores for.
        piece: elements of a piece; by default as many as the memory allows.
    """

    shard_bytes: int = DEFAULTS.shard_bytes
    memory_bytes: int = DEFAULTS.memory_bytes
    connections: int = DEFAULTS.connections
    threads: int | None = None
    piece: int | None = None

    @classmethod
    def of(cls, settings: Aggregation) -> "Limits":
        return cls(settings.shard_bytes, settings.memory_bytes, settings.connections)


DEFAULT_LIMITS = Limits()
