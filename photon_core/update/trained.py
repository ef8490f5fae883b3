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
        metrics: train_loss (mean over the round's tokens), first_loss and last_loss (of one local step),
            tokens_per_second, seconds, delta_norm, samples; gradient_norm (before clipping) and activation_norm as
            means over the steps; mfu where the site declares its hardware; loss/<stream> and samples/<stream>
            where it has several streams; valid_loss and valid_tokens of the site's own model on its held-out text,
            if local.evaluate, and of each of several streams valid_loss/<stream> and valid_tokens/<stream>;
            data_tokens where sites are sampled by them; micro_batch where one is used; devices where several
            trained as one job, nodes where several trained apart (then all is the nodes' together); 1.0 under
            state_lost or stream_restarted where that has happened; resumed_at_step is the local step of the
            checkpoint that an interrupted training went on from.
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
