"""What local training of a round gives: the files and facts of an update that is to be uploaded."""

from dataclasses import dataclass, field

from schemas.manifests import FileEntry


@dataclass(frozen=True)
class Trained:
    """A site's finished local training. Its files lie in `folder`, in the site's private state.

    Args:
        round, attempt, base_sha256: of the job.
        codec: how `files` are encoded.
        tokens: tokens really trained, the update's weight.
        steps: local steps made.
        metrics: what the register (evidence/metrics.py) has of a training; of a site whose nodes trained
            independently, of all nodes together.
        files: the update's shards, paths relative to `folder`.
        folder: the private state of this round and attempt.
        seconds: where the time of the process that finished went: load, dataset, trainer, fit, encode, save,
            and checkpoint, which is part of fit.
        notes: what the operator should know, one sentence each.
        moments: shards of the optimizer's moments, where they are averaged, in `folder` too.
    """

    round: int
    attempt: int
    base_sha256: str
    codec: str
    tokens: int
    steps: int
    metrics: dict[str, float]
    files: list[FileEntry]
    folder: str
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    moments: list[FileEntry] = field(default_factory=list)
