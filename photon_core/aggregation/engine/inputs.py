"""What one pass is given and what it gives back: sources, rules, the server's step, the place of the result."""

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
    """One member's contribution: an update whose manifest is checked, the folder of its files, and their codec."""

    update: UpdateManifest
    folder: str
    codec: Codec


@dataclass(frozen=True)
class Pass:
    """One pass over the contributions to a round.

    Args:
        run, t: the round.
        base: manifest of round t-1, whose model the sources started from.
        sources: by name, in the order of names: the order of every sum.
        rules: how they become one, by tensor.
        server: the server optimizer and its numbers.
        folder: of the result; None for the norms alone.
        lr_scale: factor that the guard has multiplied server.lr by already; it lowers the state, too.
        stem: start of the names of the model's files.
        look: flag: look at single members, for their norms and cosines, and to name one with NaN. Without, only
            the whole is known; so it may be where no member's own change may be seen.
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
    """The files that a pass has written, and its norms (see `Norms.result` and `Pairs.result`)."""

    model: list[FileEntry]
    optimizer: list[FileEntry]
    norms: dict[str, float]


@dataclass(frozen=True)
class Limits:
    """What a pass may use; no bit of the result depends on it, but for the size of the files.

    Args:
        shard_bytes: size of the files.
        memory_bytes: memory for what is read ahead.
        connections: requests at a time to a store that is not a local disk.
        threads: number of those that read ahead, of those that compute and of those that write behind; 0 for
            none, as many as the machine has cores for if left out.
        piece: elements of a piece; as many as the memory allows if left out.
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
