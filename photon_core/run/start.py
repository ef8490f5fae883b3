"""Where theta^0 comes from (InitModel): the seed, a checkpoint, another run's round, or one site's checkpoint."""

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
ATTEMPTS = 100  # most of a site's at the run's start


@dataclass(frozen=True)
class Initial:
    """theta^0.

    Args:
        files: safetensors files on this machine.
        start: where it came from; None for the seed.
    """

    files: list[Path] = field(default_factory=list)
    start: StartRef | None = None


def check_start(federation: Federation) -> None:
    """Look, before any work, whether there is a model of the right shape to start from. Reads headers only.

    A site's checkpoint is looked at by the site.

    Raises:
        FederationError: there is none; the text names the tensor and both shapes, or what else is wrong.
        PhotonError: photon gc has removed the model of the round to start from.
    """
    start = federation.start
    if start.run is not None:
        _other_round(federation)
    elif start.checkpoint is not None and start.site is None:
        Checkpoint(start.checkpoint, federation.model, federation.storage.options())


def make_initial(federation: Federation, folder: Path) -> Initial:
    """Write theta^0 into a folder of the coordinator's, whatever it comes from.

    Raises:
        FederationError: it is not of the file's model.
        PhotonError: the site has not uploaded its checkpoint.
        CorruptFile: a file is not what the manifest that covers it says.
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
    """At a site: convert its checkpoint, put it at the site's own place of round 0, and commit that.

    Safe to repeat: what is committed stands.

    Args:
        folder: scratch space on this machine.

    Raises:
        FederationError: the checkpoint is not of the file's model.
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
        raise StoreConflict(f"site '{view.name}' has committed another checkpoint meanwhile; try again")
    return committed


def site_start(run: Run, site: str, start: Start | None = None) -> StartManifest | None:
    """The newest model that a site has committed to start from; of this section of the file, if it is given.

    Raises:
        CorruptFile: it is not a manifest.
    """
    found = (m for m in reversed(site_starts(run, site)) if start is None or m.asked in ("", _asked(start)))
    return next(found, None)


def site_starts(run: Run, site: str) -> list[StartManifest]:
    """All models that a site has committed to start from, by attempt: another where the file's start was edited.

    Raises:
        CorruptFile: one of them is not a manifest.
    """
    found: list[StartManifest] = []
    while len(found) < ATTEMPTS and (manifest := run.start(site, len(found) + 1)):
        found.append(manifest)
    return found


def _asked(start: Start) -> str:
    return sha256_bytes(canonical_json(start.model_dump(mode="json")))


def _from_site(federation: Federation, folder: Path) -> Initial:
    """A site's model crosses a trust boundary: names, shapes, types and numbers are checked."""
    run, site = run_of(federation), federation.start.site
    assert site is not None
    manifest = site_start(run, site, federation.start)
    if manifest is None:
        raise PhotonError(f"site '{site}' has not uploaded the checkpoint that run '{run.run}' starts from")
    place = run.site_dir(0, site, manifest.attempt)
    _check_shapes(manifest.files, federation.model, f"start.site: the checkpoint of '{site}'")
    tensors = len(all_tensors(manifest.files))
    check_files(manifest.files, 2 * tensors)  # before any is read: the model's size bounds that of every file
    files = _copy(run.store, place, manifest.files, folder, federation.aggregation.connections)
    with TensorReader(run.store, place, manifest.files) as reader:
        for name in reader.tensors:
            if not all(np.isfinite(chunk).all() for chunk in reader.chunks(name, CHUNK)):
                raise FederationError(f"start.site: tensor '{name}' of '{site}' holds NaN or infinity")
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
        source: where the round is.
        round_sha256: hash of its manifest.
        model_sha256: hash of its model.
    """
    return StartRef(kind="run", source=source, sha256={"round.json": round_sha256, "model": model_sha256})


def _other_round(federation: Federation) -> tuple[Run, RoundManifest]:
    """The round that the file starts from, of the same model and tokenizer."""
    from photon_core.data.tokenizer import load_tokenizer

    start = federation.start
    assert start.run is not None
    other = run_of(federation, start.store, start.run)
    birth, latest = other.birth(), other.latest()
    if birth is None or latest is None:
        raise FederationError(
            f"start.run: there is no run '{start.run}' with rounds in {other.store.url}; correct run: or store:"
        )
    t = latest if start.round is None else start.round
    manifest = other.round(t)
    if manifest is None:
        raise FederationError(f"start.round: round {t} of run '{start.run}' is not committed; write 0 to {latest}")
    check_kept(other, t)
    theirs, ours = birth.federation["model"], federation.model.model_dump(mode="json")
    for key in ours:
        if key != "preset" and theirs.get(key) != ours[key]:
            raise FederationError(
                f"start.run: the model of run '{start.run}' has {key} {theirs.get(key)}, this file's has "
                f"{ours[key]}; write its model:"
            )
    _check_shapes(manifest.model, federation.model, f"start.run: round {t} of run '{start.run}'")
    if birth.tokenizer_sha256 != load_tokenizer(federation.tokenizer).sha256:
        raise FederationError(
            f"start.run: run '{start.run}' has another tokenizer than '{federation.tokenizer}'; "
            "write its tokenizer"
        )
    return other, manifest


def _check_shapes(files: list[FileEntry], model: Model, what: str) -> None:
    expected, found = parameter_shapes(model), all_tensors(files)
    for name in sorted(expected.keys() | found.keys()):
        there = f"{found[name].dtype} {list(found[name].shape)}" if name in found else "absent"
        needed = f"F32 {list(expected[name])}" if name in expected else "absent"
        if there != needed:
            raise FederationError(
                f"{what}: tensor '{name[:200]}' is {there}, but the file's model has it {needed}"
            )


def _copy(store: Store, place: str, entries: list[FileEntry], folder: Path, connections: int) -> list[Path]:
    """Copies of a manifest's files on this machine, verified."""
    paths = []
    for number, found in enumerate(store.fetch_all(entries, place, folder / "fetched", connections), 1):
        path = folder / f"{number:05d}-of-{len(entries):05d}.safetensors"
        shutil.copyfile(found, path)
        paths.append(path)
    return paths
