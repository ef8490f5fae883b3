"""photon rollback: return the run to an earlier round. Needs the store only, neither server nor torch."""

import sys
from pathlib import Path

from photon_core.errors import PhotonError
from photon_core.run.line import progress, rounds_left, sentence
from photon_core.run.rollback import roll_back, user
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest


def rollback(federation: Federation, file: Path, to: int, reason: str) -> None:
    """Commit the rollback and print what comes next.

    Raises:
        FederationError: there is no such run or round.
        PhotonError: photon gc has removed the round's tensors.
        StoreConflict: a round was committed at the same moment; nothing was rolled back.
    """
    manifest = roll_back(run_of(federation), federation, to, reason, user())
    print(sentence(manifest))
    if federation.trackers:
        _track(federation, manifest)
    left = rounds_left(federation, manifest)
    if federation.parent is None:
        print(f"{progress(federation, left)} are left. To continue, write: photon run {file}")
    else:
        print(f"the next round of run '{federation.parent.run}' continues from there")


def _track(federation: Federation, manifest: RoundManifest) -> None:
    """Log the rollback to the trackers. An unreachable tracker loses its entry; the rollback stays valid."""
    from tasks.runtime import log_round, runtime

    try:
        with runtime() as process:
            log_round(process.launcher, federation, manifest)
    except PhotonError as error:
        print(f"photon: {sentence(manifest)}; not in every experiment tracker: {error}", file=sys.stderr)
