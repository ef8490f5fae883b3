"""The model that a site trains from if there are key layers: the committed backbone, and the site's key layers.

The site takes the key layers of its newest aggregated update. They become a mean over themselves, the committed
ones, which are the parent's, and residuals (aggregation/entry.py). A site without such an update takes the
committed ones.

    <state_dir>/cache/entry/<run>/000007-0001/blocks.3-00001-of-00001.safetensors   model of round 7's start
                                              own/<sha256>   own key layers and residuals, if fetched
                                              as-mean/   with temperature auto: the key layers of another option

This folder is a cache. Folders of older rounds are removed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from photon_core.aggregation.choice import OPTIONS, PARENT, UNCHOSEN, choose, with_choice
from photon_core.aggregation.entry import OWN, Entered, Row, enter_layers, fetched
from photon_core.aggregation.parts import key_files
from photon_core.aggregation.residuals import in_order, row_name
from photon_core.aggregation.routing import intact
from photon_core.errors import PhotonError
from photon_core.files import TEMPORARY, clear
from photon_core.model.key_layers import parted
from photon_core.run.paths import STEM
from photon_core.run.run import Run, model_sha256
from photon_core.run.updates import last_contribution
from photon_core.tensors.local import LocalTensors
from photon_core.training.state.folder import FOLDER, find_key_layers
from schemas.manifests import Attention, FileEntry, Residual, RoundManifest
from schemas.sections.worldlm import AUTO
from schemas.view import SiteView

WRITING, TRIED = ".writing-", "as-"
SHARD = rf"{STEM}-\d{{5,}}-of-\d{{5,}}\.safetensors"
OURS = re.compile(
    rf"(?:as-[a-z0-9.]+/)?(?:{re.escape(WRITING)}[^/]+/)?{SHARD}|own/(?:[0-9a-f]{{64}}|{TEMPORARY.pattern})"
)


@dataclass(frozen=True)
class Entry:
    """The model that a site trains from.

    Args:
        files: local paths of its safetensors files.
        sha256: hash of the model; empty without key layers.
        attention: key layer -> its attention; empty if the key layers are the committed ones.
        entries: manifest entries of the files; empty without key layers.
    """

    files: list[Path]
    sha256: str = ""
    attention: Mapping[str, Attention] = field(default_factory=dict)
    entries: list[FileEntry] = field(default_factory=list)


Losses = Callable[[Mapping[str, Entry]], Mapping[str, float]]  # of the model of each option


def enter_best(run: Run, view: SiteView, t: int, attempt: int, committed: Sequence[Path], losses: Losses) -> Entry:
    """As `enter`. With `temperature: auto`, the model of the option with the lowest loss."""
    theta, worldlm = enter(run, view, t, attempt, committed), view.federation.worldlm
    if worldlm is None or worldlm.temperature != AUTO or not theta.attention:
        return theta
    others = (option for option in OPTIONS if option != UNCHOSEN)
    found = {UNCHOSEN: theta, **{option: enter(run, view, t, attempt, committed, option) for option in others}}
    given = losses(found)
    chosen = choose(given)
    for option in found.keys() - {chosen, UNCHOSEN}:
        clear(_folder(run, view, t, attempt) / f"{TRIED}{option}", OURS)
    return replace(found[chosen], attention=with_choice(found[chosen].attention, given))


def enter(
    run: Run, view: SiteView, t: int, attempt: int, committed: Sequence[Path], option: str = UNCHOSEN
) -> Entry:
    """Write the model that a site trains from in round t. Deterministic: every call writes the same bits.

    Args:
        run, view, t, attempt: run, site, round and attempt.
        committed: verified local files of round t - 1's model, in its order.
        option: option of `temperature: auto`; not used otherwise.

    Raises:
        CorruptFile: the site's own key layers are lost or damaged, or do not match the model.
    """
    base = run.round(t - 1)
    if base is None or not base.key_layers:
        return Entry(list(committed))
    folder = _folder(run, view, t, attempt)
    _drop_old(folder.parent, t)
    return enter_with(run, view, base, intact(run, run.residuals(t, view.name)), committed, folder, option)


def enter_with(
    run: Run,
    view: SiteView,
    base: RoundManifest,
    received: Sequence[Residual],
    committed: Sequence[Path],
    folder: Path,
    option: str = UNCHOSEN,
) -> Entry:
    """Write the model that a site trains from to a folder.

    Args:
        run, view: run and site.
        base: round before the site's, with key layers.
        received: undamaged residuals that the federation sends to the site.
        committed: verified local files of base's model, in its order.
        folder: folder of the new files.
        option: option of `temperature: auto`; not used otherwise.

    Raises:
        CorruptFile: as for `enter`.
    """
    t, residuals = base.round + 1, in_order(received)
    places = {entry.path: path for entry, path in zip(base.model, committed, strict=True)}
    own = _own(run, view, t, folder)
    if own is None and not residuals:
        return _entry(base, places, Entered(folder))
    files = key_files(base)
    parent = LocalTensors.of((places[entry.path] for entry in files), files)
    pools = {layer: [Row(OWN, own or parent), Row(PARENT, parent)] for layer in base.key_layers}
    connections = view.federation.aggregation.connections
    for residual in residuals:
        row = fetched(row_name(residual), run.store, residual.folder, residual.files, folder / "own", connections)
        pools[residual.layer].append(row)
    return _entry(base, places, _attended(view, base, pools, folder, option))


def _folder(run: Run, view: SiteView, t: int, attempt: int) -> Path:
    return view.cache_dir / "entry" / run.run / f"{t:06d}-{attempt:04d}"


def _own(run: Run, view: SiteView, t: int, folder: Path) -> LocalTensors | None:
    """The key layers of the site's newest aggregated update: from its private state, else from the store."""
    last = last_contribution(run, view.name, t)
    if last is None:
        return None
    update = run.update(last[0], view.name, last[1])
    if update is None:
        raise PhotonError(
            f"{run.store.locate(run.site_dir(last[0], view.name, last[1]))} has no update.json, though round "
            f"{last[0]} has aggregated it: site '{view.name}' cannot continue with its key layers"
        )
    paths = find_key_layers(view.state_dir, *last, update.key_layers)
    if paths is None:
        place, connections = run.site_dir(last[0], view.name, last[1]), view.federation.aggregation.connections
        paths = run.store.fetch_all(update.key_layers, place, folder / "own", connections)
    return LocalTensors.of(paths, update.key_layers)


def _attended(
    view: SiteView, base: RoundManifest, pools: Mapping[str, Sequence[Row]], folder: Path, option: str
) -> Entered:
    """The site's key layers, each of which is the mean of its pool."""
    worldlm = view.federation.worldlm
    assert worldlm is not None
    folder = folder if option == UNCHOSEN else folder / f"{TRIED}{option}"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=WRITING, dir=folder) as scratch:
        size = view.federation.aggregation.shard_bytes
        made = enter_layers(pools, base.key_layers, worldlm, Path(scratch), size, option)
        for entry in made.files:
            (made.folder / entry.path).replace(folder / entry.path)
    return Entered(folder, made.files, made.attention)


def _entry(base: RoundManifest, places: Mapping[str, Path], found: Entered) -> Entry:
    """The backbone's files, then those of each key layer: the entered ones, else the committed ones."""
    backbone, layers = parted(base.model, base.key_layers)
    made = parted(found.files, {layer: base.key_layers[layer] for layer in found.attention}).layers
    files: list[tuple[Path, FileEntry]] = [(places[entry.path], entry) for entry in backbone]
    for layer, committed in layers.items():
        files += [(found.folder / entry.path, entry) for entry in made.get(layer, [])] or [
            (places[entry.path], entry) for entry in committed
        ]
    paths, entries = [path for path, _ in files], [entry for _, entry in files]
    return Entry(paths, model_sha256(entries), found.attention, entries)


def _drop_old(parent: Path, t: int) -> None:
    """Remove the folders of rounds before t - 1. A late site may still train from that of round t - 1."""
    for folder in parent.iterdir() if parent.is_dir() else ():
        name = FOLDER.fullmatch(folder.name)
        if name and int(name[1]) < t - 1:
            clear(folder, OURS)
