"""The origin of theta^0 (InitModel): the seed, a checkpoint, another run's round, or one site's checkpoint."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from photon_core.errors import FederationError, PhotonError, StoreConflict
from photon_core.formatting import printable
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.model.foreign import Checkpoint
from photon_core.model.init import initial_model
from photon_core.model.shapes import parameter_shapes
from photon_core.run.history import check_kept
from photon_core.run.run import Run, run_of
from photon_core.store.store import Store
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import all_tensors, check_files, put_file
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, StartManifest, StartRef
from schemas.sections.model import Model
from schemas.sections.start import Start
from schemas.view import SiteView

CHUNK = 4 << 20  # elements
ATTEMPTS = 100  # maximum attempts of a site at the run's start


@dataclass(frozen=True)
class Initial:
    """The initial model theta^0.

    Args:
        files: safetensors files on this machine.
        start: origin of the model; None for the seed.
    """

    files: list[Path] = field(default_factory=list)
    start: StartRef | None = None


def check_start(federation: Federation) -> None:
    """Check, before any work, that there is a model of the right shape to start from. Reads headers only.

    The site itself checks a site's checkpoint.

    Raises:
        FederationError: there is none; the message names the tensor and both shapes, or another reason.
        PhotonError: photon gc has removed the model of the round to start from.
    """
    start = federation.start
    if start.run is not None:
        _other_round(federation)
    elif start.checkpoint is not None and start.site is None:
        Checkpoint(start.checkpoint, federation.model, federation.storage.options())


def make_initial(federation: Federation, folder: Path) -> Initial:
    """Write theta^0, from any origin, into a folder of the coordinator.

    Raises:
        FederationError: the model is not the file's.
        PhotonError: the site has not uploaded its checkpoint.
        CorruptFile: a file is not the one that its manifest covers.
    """
    start = federation.start
    if start.from_seed:
        return Initial(initial_model(federation, folder))
    if start.run is not None:
        return _from_run(federation, folder)
    if start.site is not None:
        return _from_site(federation, folder)
    assert start.checkpoint is not None
    checkpoint = Checkpoint(start.checkpoint, federation.model, federation.storage.options())
    files, hashes = checkpoint.write(folder)
    return Initial(
        files, StartRef(kind="checkpoint", source=start.checkpoint, sha256=hashes, notes=checkpoint.notes)
    )


def upload_start(view: SiteView, folder: Path) -> StartManifest:
    """At a site: convert its checkpoint, upload it to the site's folder of round 0, and commit it. Idempotent.

    Args:
        view: site with the checkpoint.
        folder: scratch folder on this machine.

    Raises:
        FederationError: the checkpoint is not of the file's model.
        StoreConflict: the site has committed another checkpoint at the same time.
    """
    run = run_of(view.federation)
    committed = site_start(run, view.name, view.federation.start)
    if committed is not None:
        return committed
    attempt = len(site_starts(run, view.name)) + 1
    place = view.federation.start.checkpoint
    assert place is not None
    checkpoint = Checkpoint(place, view.federation.model, view.options(place))
    files, hashes = checkpoint.write(folder)
    place = run.site_dir(0, view.name, attempt)
    entries = [put_file(run.store, path, place) for path in files]
    names = {Path(name).name: sha256 for name, sha256 in hashes.items()}
    manifest = StartManifest(
        run=run.run,
        site=view.name,
        files=entries,
        sha256=names,
        notes=checkpoint.notes,
        attempt=attempt,
        asked=_asked(view.federation.start),
    )
    try:
        run.commit_start(manifest)
    except StoreConflict:
        pass
    committed = site_start(run, view.name, view.federation.start)
    if committed is None:
        raise StoreConflict(
            f"site '{view.name}' has committed another checkpoint at the same time; run the flow again"
        )
    return committed


def site_start(run: Run, site: str, start: Start | None = None) -> StartManifest | None:
    """The newest checkpoint that a site has committed to start from; with `start`, only one of this section.

    Raises:
        CorruptFile: it is not a manifest.
    """
    matches = (m for m in reversed(site_starts(run, site)) if start is None or m.asked in ("", _asked(start)))
    return next(matches, None)


def site_starts(run: Run, site: str) -> list[StartManifest]:
    """All checkpoints that a site has committed to start from, by attempt. Each edit of `start` makes another.

    Raises:
        CorruptFile: one of them is not a manifest.
    """
    starts: list[StartManifest] = []
    while len(starts) < ATTEMPTS and (manifest := run.start(site, len(starts) + 1)):
        starts.append(manifest)
    return starts


def _asked(start: Start) -> str:
    return sha256_bytes(canonical_json(start.model_dump(mode="json")))


def _from_site(federation: Federation, folder: Path) -> Initial:
    """theta^0 from a site's checkpoint. It is untrusted: names, shapes, types and numbers are checked."""
    run, site = run_of(federation), federation.start.site
    assert site is not None
    manifest = site_start(run, site, federation.start)
    if manifest is None:
        raise PhotonError(f"site '{site}' has not uploaded the checkpoint that run '{run.run}' starts from")
    place = run.site_dir(0, site, manifest.attempt)
    _check_shapes(manifest.files, federation.model, f"start.site: the checkpoint of '{site}'")
    tensors = len(all_tensors(manifest.files))
    check_files(manifest.files, 2 * tensors)  # before any read: the model's size bounds the size of every file
    files = _copy(run.store, place, manifest.files, folder, federation.aggregation.connections)
    with TensorReader(run.store, place, manifest.files) as reader:
        for name in reader.tensors:
            if not all(np.isfinite(chunk).all() for chunk in reader.chunks(name, CHUNK)):
                raise FederationError(
                    f"start.site: tensor '{name}' of '{site}' holds NaN or infinity; write another checkpoint"
                )
    hashes = {printable(name): sha256 for name, sha256 in manifest.sha256.items()}
    notes = [printable(note) for note in manifest.notes]
    return Initial(files, StartRef(kind="site", source=site, sha256=hashes, notes=notes))


def _from_run(federation: Federation, folder: Path) -> Initial:
    other, manifest = _other_round(federation)
    connections = federation.aggregation.connections
    files = _copy(other.store, other.files_dir(manifest.round), manifest.model, folder, connections)
    source = f"{other.store.url}/{other.run} round {manifest.round}"
    return Initial(files, from_round(source, other.round_sha256(manifest.round), manifest.model_sha256))


def from_round(source: str, round_sha256: str, model_sha256: str) -> StartRef:
    """A round of a run as the origin of another run's model.

    Args:
        source: label of the round: its store, run and number.
        round_sha256: hash of the round's manifest.
        model_sha256: hash of the round's model.
    """
    return StartRef(kind="run", source=source, sha256={"round.json": round_sha256, "model": model_sha256})


def _other_round(federation: Federation) -> tuple[Run, RoundManifest]:
    """The round that the file starts from, which must have the same model and tokenizer."""
    from photon_core.data.tokenizer import load_tokenizer

    start = federation.start
    assert start.run is not None
    other = run_of(federation, start.store, start.run)
    first, latest = other.run_manifest(), other.latest()
    if first is None or latest is None:
        raise FederationError(
            f"start.run: there is no run '{start.run}' with rounds in {other.store.url}; correct start.run or "
            "start.store"
        )
    t = latest if start.round is None else start.round
    manifest = other.round(t)
    if manifest is None:
        raise FederationError(f"start.round: round {t} of run '{start.run}' is not committed; write 0 to {latest}")
    check_kept(other, t)
    theirs, ours = first.federation["model"], federation.model.model_dump(mode="json")
    for key in ours:
        if key != "preset" and theirs.get(key) != ours[key]:
            raise FederationError(
                f"start.run: the model of run '{start.run}' has {key} {theirs.get(key)}, this file's has "
                f"{ours[key]}; write the model section of that run"
            )
    _check_shapes(manifest.model, federation.model, f"start.run: round {t} of run '{start.run}'")
    if first.tokenizer_sha256 != load_tokenizer(federation.tokenizer).sha256:
        raise FederationError(
            f"start.run: run '{start.run}' has another tokenizer than '{federation.tokenizer}'; "
            "write the tokenizer of that run"
        )
    return other, manifest


def _check_shapes(files: list[FileEntry], model: Model, what: str) -> None:
    expected, tensors = parameter_shapes(model), all_tensors(files)
    for name in sorted(expected.keys() | tensors.keys()):
        actual = f"{tensors[name].dtype} {list(tensors[name].shape)}" if name in tensors else "absent"
        needed = f"F32 {list(expected[name])}" if name in expected else "absent"
        if actual != needed:
            raise FederationError(
                f"{what}: tensor '{name[:200]}' is {actual}, but by the file's model it must be {needed}"
            )


def _copy(store: Store, place: str, entries: list[FileEntry], folder: Path, connections: int) -> list[Path]:
    """Verified copies of a manifest's files on this machine."""
    paths = []
    for number, fetched in enumerate(store.fetch_all(entries, place, folder / "fetched", connections), 1):
        path = folder / f"{number:05d}-of-{len(entries):05d}.safetensors"
        shutil.copyfile(fetched, path)
        paths.append(path)
    return paths
