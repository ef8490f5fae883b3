"""The committed rounds of a run, read in parallel, and their remarks as sentences."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from photon_core.errors import (
    PhotonError,
)
from photon_core.run.line import sentence
from photon_core.run.paths import PlaceKind, place_at
from photon_core.run.run import Run
from photon_core.store.interface import Found
from schemas.manifests import (
    RoundManifest,
)

READERS = 16  # concurrent reads of manifests: a distant store answers each in some 50 ms


def history(run: Run, last: int | None = None) -> list[RoundManifest]:
    """Every committed round, from 0 to `last`, by default to the latest.

    Raises:
        PhotonError: an earlier round's manifest is missing or changed.
    """
    latest = run.latest() if last is None else last
    with ThreadPoolExecutor(READERS) as pool:
        manifests = list(pool.map(run.round, range(0 if latest is None else latest + 1)))
    rounds = [manifest for manifest in manifests if manifest is not None]
    if len(rounds) != len(manifests):
        t = manifests.index(None)
        raise PhotonError(f"{run.store.url}: round {t} of run '{run.run}' is missing, but round {latest} exists")
    return rounds


def remarks(manifest: RoundManifest) -> list[str]:
    """Everything unusual in a round, a line each: the guard, excluded sites, paused sites, incidents."""
    return [
        *([sentence(manifest)] if manifest.kind != "train" else []),
        *(f"Guard: {note}" for note in manifest.guard),
        *(f"Excluded: {site} ({reason})" for site, reason in sorted(manifest.left_out.items())),
        *([f"Paused: {', '.join(manifest.paused)}"] if manifest.paused else []),
        *(f"{site}: {'; '.join(notes)}" for site, notes in sorted(manifest.incidents.items())),
        *(f"Not evaluated: {site} ({reason})" for site, reason in sorted(manifest.not_evaluated.items())),
    ]


def check_kept(run: Run, t: int) -> None:
    """Refuse to read the tensors of a round if garbage collection has removed the files that it names.

    Raises:
        PhotonError: they were removed; the message lists the kept rounds.
    """
    note = run.removed(run.holder(t))
    if note is None:
        return
    gone = removed_rounds(run.files())
    kept = [manifest.round for manifest in history(run) if run.holder(manifest.round) not in gone]
    raise PhotonError(
        f"round {t}'s model was removed by photon gc ({note.created}); kept rounds are {ranges(kept)}"
    )


def ranges(numbers: Sequence[int]) -> str:
    """[0, 10, 11, 12] as '0, 10 to 12'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, (r[0], r[-1]))) if len(r) > 2 else ", ".join(map(str, r)) for r in runs)


def removed_rounds(found: Iterable[Found]) -> set[int]:
    """Rounds whose tensors `photon gc` has removed, by the files of a run."""
    places = (place_at(file.path) for file in found)
    return {place.t for place in places if place and place.kind is PlaceKind.REMOVED}
