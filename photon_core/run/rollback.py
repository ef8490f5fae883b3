"""Rollback: a committed round without updates that names the files and counters of an earlier round.

After a rollback to round N, the next round starts from round N again. All later rounds remain in the store.
"""

import getpass
import os
from typing import Any, Literal

from photon_core.errors import CorruptFile, FederationError, StoreConflict
from photon_core.formatting import printable
from photon_core.run.history import check_kept
from photon_core.run.line import newest
from photon_core.run.provenance import federation_sha256, precise_now, versions
from photon_core.run.run import Run, files_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.secrets import has_secret

REASON_LIMIT = 500  # characters
CARRIED = (  # what a round needs from the round before it
    *("model_sha256", "model", "download", "optimizer", "moments", "moment_sizes", "moment_ratio", "server"),
    *("global_step", "total_tokens", "entries", "key_layers", "down", "received"),
)


def user() -> str:
    """The name of the operating system's user that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def roll_back(run: Run, federation: Federation, to: int, reason: str = "", who: str = "") -> RoundManifest:
    """Commit the next round with the model, server optimizer and moments of round `to`. Nothing is removed.

    A round that is open at that time ends in a conflict: its number is taken, and its updates start from a model
    that the next round does not have.

    Raises:
        FederationError: there is no such run or round, the run already has this model, or the reason holds a
            secret.
        PhotonError: photon gc has removed the round's tensors; the message lists the kept rounds.
        CorruptFile: a file of the round is missing or truncated.
        StoreConflict: another round was committed at the same time, and is kept.
    """
    if has_secret(reason):
        raise FederationError(
            "the reason looks like it holds a secret (a password, a signed URL, a token), which every site could "
            "read; write a reason without it"
        )
    base, latest = _choose(run, to)
    manifest = without_updates(run, federation, "rollback", base, latest.round + 1, reason, who)
    try:
        run.commit_round(manifest)
    except StoreConflict:
        raise StoreConflict(
            f"round {manifest.round} of run '{run.run}' was committed by another process at the same time, and is "
            "kept; nothing was rolled back. Look at photon status, and repeat the command"
        ) from None
    # if photon gc has removed the files since the check above, the run needs another rollback, which is possible
    check_kept(run, manifest.round)
    return manifest


def without_updates(
    run: Run, federation: Federation, kind: Literal["rollback"], base: RoundManifest, t: int, reason: str, who: str
) -> RoundManifest:
    """The manifest of round t that names the files and counters of an earlier round, `base`."""
    carried: dict[str, Any] = {name: getattr(base, name) for name in CARRIED}
    return RoundManifest(
        run=run.run,
        round=t,
        kind=kind,
        to=base.round,
        reason=printable(reason, REASON_LIMIT),
        who=printable(who, 100),
        behind=[*base.behind, (base.round + 1, t)],
        federation_sha256=federation_sha256(federation),
        previous_sha256=run.round_sha256(t - 1),
        created=precise_now(),
        versions=versions(),
        **carried,
    )


def _choose(run: Run, to: int) -> tuple[RoundManifest, RoundManifest]:
    """The target of the rollback, whose files have the right sizes, and the latest round. Both are committed."""
    latest = newest(run)
    if latest is None:
        raise FederationError(
            f"run '{run.run}' has no rounds in {run.store.url}: there is nothing to roll back; correct the file's "
            "run or store"
        )
    base = run.round(to) if 0 <= to < latest.round else None
    if base is None:
        at = f"is the latest of run '{run.run}'" if to == latest.round else f"of run '{run.run}' is not committed"
        choice = f"write --to 0 to {latest.round - 1}" if latest.round else "there is no earlier round"
        raise FederationError(f"round {to} {at}; {choice}")
    if run.holder(to) == run.holder(latest.round):
        raise FederationError(
            f"round {latest.round}, the latest of run '{run.run}', already has the model of round {to}"
        )
    check_kept(run, to)
    for entry in files_of(base):
        _check_size(run, f"{run.files_dir(to)}/{entry.path}", entry.bytes)
    return base, latest


def _check_size(run: Run, path: str, size: int) -> None:
    try:
        actual = run.store.size(path)
    except FileNotFoundError:
        raise CorruptFile(f"{run.store.locate(path)} is missing, although a manifest covers it") from None
    if actual != size:
        raise CorruptFile(f"{run.store.locate(path)} holds {actual} bytes; its manifest says {size}")
