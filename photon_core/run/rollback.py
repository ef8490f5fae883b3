"""A committed round without updates: it names the files and counters of an earlier round, and nothing is trained.

A rollback is one: the next round starts from round N again, and all that came after N stays where it is.
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
CARRIED = (  # what the next round needs of the one before it
    *("model_sha256", "model", "download", "optimizer", "moments", "moment_sizes", "moment_ratio", "server"),
    *("global_step", "total_tokens", "entries", "key_layers", "down", "received"),
)


def user() -> str:
    """The operating system's name for whoever runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def roll_back(run: Run, federation: Federation, to: int, reason: str = "", who: str = "") -> RoundManifest:
    """Commit the next round as round `to` again: its model, server optimizer and moments. Nothing is removed.

    A round that is open at that moment ends in a conflict: its number is taken, and its updates start from a model
    that the next round does not have.

    Raises:
        FederationError: there is no such run or round, it is the model that the run is at anyway, or the reason
            holds a secret.
        PhotonError: photon gc has removed the round's tensors; the message names the rounds that are kept.
        CorruptFile: a file of the round is missing or cut.
        StoreConflict: another round was committed at the same moment, and stands.
    """
    if has_secret(reason):
        raise FederationError(
            "the reason holds a secret by its form (a password, a signed URL, a token), which every site could "
            "read; write it without"
        )
    base, latest = _choose(run, to)
    manifest = without_updates(run, federation, "rollback", base, latest.round + 1, reason, who)
    try:
        run.commit_round(manifest)
    except StoreConflict:
        raise StoreConflict(
            f"round {manifest.round} of run '{run.run}' was committed by another in the meantime, and stands; "
            "nothing was rolled back. Look at photon status, and write the command again"
        ) from None
    check_kept(
        run, manifest.round
    )  # photon gc may have taken them since: then another rollback is needed, and can be
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
    """The round to go back to and the latest one, both committed; the first one's files are whole in size."""
    latest = newest(run)
    if latest is None:
        raise FederationError(
            f"run '{run.run}' has no rounds in {run.store.url}: there is nothing to roll back; correct run: "
            "or store:"
        )
    base = run.round(to) if 0 <= to < latest.round else None
    if base is None:
        at = f"is the latest of run '{run.run}'" if to == latest.round else f"of run '{run.run}' is not committed"
        choice = f"write --to 0 to {latest.round - 1}" if latest.round else "there is none before it"
        raise FederationError(f"round {to} {at}; {choice}")
    if run.holder(to) == run.holder(latest.round):
        raise FederationError(
            f"round {latest.round}, the latest of run '{run.run}', is the model of round {to} already"
        )
    check_kept(run, to)
    for entry in files_of(base):
        _check_size(run, f"{run.files_dir(to)}/{entry.path}", entry.bytes)
    return base, latest


def _check_size(run: Run, path: str, size: int) -> None:
    try:
        found = run.store.size(path)
    except FileNotFoundError:
        raise CorruptFile(f"{run.store.locate(path)} is missing, though a manifest covers it") from None
    if found != size:
        raise CorruptFile(f"{run.store.locate(path)} holds {found} bytes; its manifest says {size}")
