"""The models and bytes of a finished run, of a tree or of one federation, according to its stores.

Each leaf, which is a site, has two models: as received, from which it would train in the next round, and as
trained, which it returned in the last round. The next round is entered as in a run, with residuals.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from photon_core.aggregation import fit
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.routing import has_residuals, send_down
from photon_core.run.history import history
from photon_core.run.line import line
from photon_core.run.run import Run, run_of
from photon_core.training import entering
from photon_core.update.codecs.registry import get_codec
from schemas.manifests import FileEntry, RoundManifest
from schemas.reading.world import World
from schemas.view import views


def received(world: World, scratch: Path) -> dict[str, list[Path]]:
    """Site -> files of the model that it receives after the last round. Commits an entry of each member."""
    federation, run = world.federation, run_of(world.federation)
    latest = run.latest()
    assert latest is not None
    if has_residuals(federation, latest + 1):
        members = [member.name for member in federation.members]
        send_down(run, federation, latest + 1, members, Limits.of(federation.aggregation))
    found: dict[str, list[Path]] = {}
    for name, child in world.children.items():
        call, folder = fit.call_of(federation, name, latest + 1), scratch / name
        folder.mkdir(parents=True)
        fit.enter(run_of(child.federation), child.federation, call, folder)
        found |= received(child, folder)
    for view in views(federation):
        found[view.name] = entering.enter(run, view, latest + 1, 1, model_files(run, latest)).files
    return found


def trained(world: World, folder: Path) -> dict[str, list[Path]]:
    """Site -> file of the model that it returned in its last round, which is written to a folder."""
    found: dict[str, list[Path]] = {}
    for _, node in world.nodes():
        run, last = run_of(node.federation), newest_trained(node)
        for view in views(node.federation):
            found[view.name] = [_returned(run, last, view.name, folder / f"{view.name}.safetensors")]
    return found


def federations(world: World) -> dict[str, list[Path]]:
    """Run -> files of the federation's own model after its last trained round."""
    return {
        node.federation.run: model_files(run_of(node.federation), newest_trained(node).round)
        for _, node in world.nodes()
    }


def newest_trained(node: World) -> RoundManifest:
    """The last round of a federation in which it trained. Entries are none.

    Raises:
        RuntimeError: a member has no update in it.
    """
    run = run_of(node.federation)
    manifest = next(line(run, run.latest() or 0))
    if missing := {member.name for member in node.federation.members} - manifest.updates.keys():
        raise RuntimeError(f"round {manifest.round} of {run.run} is without {', '.join(sorted(missing))}")
    return manifest


def model_files(run: Run, t: int) -> list[Path]:
    """Files of round t's model in a store on this machine."""
    manifest = run.round(t)
    assert manifest is not None
    return _local(run, run.files_dir(t), manifest.model)


def moved(world: World) -> dict[str, int]:
    """Bytes of all rounds to and from the sites, and to and from the regions, by the manifests.

    They are the updates, the models and averaged moments from which members start, and the residuals. A model that
    is only evaluated is not counted: it is that of the next round.
    """
    found = {"sites": 0, "regions": 0}
    for _, node in world.nodes():
        run = run_of(node.federation)
        link = "regions" if node.children else "sites"
        found[link] += sum(_moved_in(run, manifest) for manifest in history(run))
    return found


def _moved_in(run: Run, manifest: RoundManifest) -> int:
    base = run.round(manifest.round - 1) if manifest.updates else None
    if base is None:
        return 0
    fetched = _bytes((*(base.download or base.model), *base.moments))
    routed = (residual for name in manifest.updates for residual in run.residuals(manifest.round, name))
    sent = sum(update.bytes for update in manifest.updates.values())
    return len(manifest.updates) * fetched + sent + sum(_bytes(residual.files) for residual in routed)


def _bytes(entries: Iterable[FileEntry]) -> int:
    return sum(entry.bytes for entry in entries)


def _returned(run: Run, last: RoundManifest, site: str, target: Path) -> Path:
    """Write a site's model: the base with its decoded update, and its key layers."""
    from safetensors.numpy import save_file

    update = run.update(last.round, site, last.updates[site].attempt)
    assert update is not None
    place, codec = run.site_dir(last.round, site, update.attempt), get_codec(update.codec)
    tensors = _loaded(model_files(run, last.round - 1))
    for name, change in _loaded(_local(run, place, update.files)).items():
        tensors[name] = codec.decode(tensors[name], change)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors | _loaded(_local(run, place, update.key_layers)), target)
    return target


def _local(run: Run, folder: str, entries: Iterable[FileEntry]) -> list[Path]:
    return [Path(run.store.url) / folder / entry.path for entry in entries]


def _loaded(files: Iterable[Path]) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}
