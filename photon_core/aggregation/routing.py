"""Residuals in a round: routed to members before they train, picked and handed up or down afterwards.

These are lines 8 (RouteResiduals) and 18 (PartitionResiduals) of WorldLM's Algorithm 1, applied to the files of a
store. aggregation/residuals.py makes the decisions.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from photon_core.aggregation.blame import Doubt
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.key_layers import KeyLayers
from photon_core.aggregation.parts import key_layer
from photon_core.aggregation.residuals import (
    NOTHING,
    Dropped,
    Offer,
    Partition,
    handed_up,
    is_in_line,
    partition,
    picked,
    route,
)
from photon_core.aggregation.scoring import Row, layer_sums
from photon_core.errors import CorruptFile, StoreConflict, StoreRefused, StoreUnavailable, UpdateRejected
from photon_core.model.key_layers import parted
from photon_core.run.line import last_updates
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import Run, run_of
from photon_core.run.sampling import sampled_members
from photon_core.tensors.shards import all_tensors, copy_files
from schemas.federation import Federation
from schemas.manifests import DownManifest, Residual, RoundManifest, UpdateManifest


def has_residuals(federation: Federation, t: int) -> bool:
    """Whether round t has residuals to send."""
    if federation.worldlm is None or federation.worldlm.residuals == "off":
        return False
    base = run_of(federation).round(t - 1)
    return base is not None and bool(base.down or base.received)


def send_down(run: Run, federation: Federation, t: int, sampled: Sequence[str], limits: Limits) -> None:
    """Commit down.json of each member that gets a residual in round t. Idempotent: one that exists is kept.

    Args:
        run, federation, t: run, its file, and number of the round.
        sampled: names of the sampled members.
        limits: limits of a pass.

    Raises:
        CorruptFile: the federation's key layers are damaged.
    """
    for member, residuals in _routed(run, federation, t, sampled, limits).items():
        folder = Place(PlaceKind.DOWN_FOLDER, run.run, t, member).path
        copies = [_copied(run, residual, run, folder) for residual in residuals]
        try:
            run.commit_residuals(DownManifest(run=run.run, round=t, member=member, residuals=copies))
        except StoreConflict:
            pass


def residuals_for(run: Run, federation: Federation, t: int, member: str) -> list[Residual]:
    """The undamaged residuals that a member enters round t with. Before the round opens, they are those that it
    would get; nothing is committed.

    Raises:
        CorruptFile: the federation's key layers are damaged.
    """
    found = run.residuals(t, member)
    if not found and run.round(t) is None and has_residuals(federation, t):
        sampled, limits = sampled_members(run, federation, t), Limits.of(federation.aggregation)
        found = _routed(run, federation, t, sampled, limits).get(member, [])
    return intact(run, found)


def _routed(
    run: Run, federation: Federation, t: int, sampled: Sequence[str], limits: Limits
) -> Mapping[str, list[Residual]]:
    """Member -> residuals that it gets in round t, where they lie now."""
    base = run.round(t - 1)
    assert base is not None and federation.worldlm is not None
    offers = [
        *_offers(run, base, intact(run, base.down), False, limits),
        *_offers(run, base, intact(run, base.received), True, limits),
    ]
    return route(offers, sampled, federation.worldlm.residuals).members


def receive(above: Run, run: Run, t: int, residuals: Iterable[Residual]) -> list[Residual]:
    """Copy the residuals that a parent sends to the folder of the entry that names them."""
    folder = Place(PlaceKind.ROUND_PART, run.run, t, part="residuals").path
    return [_copied(above, residual, run, folder) for residual in residuals]


def hand_up(run: Run, residuals: Iterable[Residual], parent: Run, folder: str) -> list[Residual]:
    """Copy the residuals that go up to the folder of the contribution."""
    return [_copied(run, residual, parent, folder) for residual in intact(run, residuals)]


def intact(run: Run, residuals: Iterable[Residual]) -> list[Residual]:
    """The residuals whose files are not damaged. The others end here: members can write to the files' folders."""

    def is_whole(residual: Residual) -> bool:
        try:
            for entry in residual.files:
                run.store.check(entry, residual.folder)
        except CorruptFile:
            return False
        return True

    return [residual for residual in residuals if is_whole(residual)]


def divide(
    run: Run,
    base: RoundManifest,
    updates: Mapping[str, UpdateManifest],
    new: KeyLayers,
    federation: Federation,
    limits: Limits,
) -> Partition:
    """The residuals that go up and down after the members' mean.

    Args:
        run, base: run, and manifest of round t-1.
        updates: aggregated updates of the members.
        new: key layers of round t.
        federation: file whose `worldlm` has the policy.
        limits: limits of a pass.
    """
    worldlm, is_root = federation.worldlm, federation.parent is None
    handed = [
        handed_up(residual.model_copy(update={"folder": _folder(run, update)}), name)
        for name, update in sorted(updates.items())
        for residual in update.residuals
    ]
    if worldlm is None or not base.key_layers:
        return NOTHING
    if worldlm.residuals == "off" or (is_root and worldlm.residuals == "tree" and not handed):
        return partition([], [Offer(residual, {}) for residual in handed], worldlm.residuals, is_root)
    rows, passed, dropped = list[Offer](), list[Offer](), list[Dropped]()
    for layer in base.key_layers:
        pool = _Pool(run, base, layer, updates, new, limits)
        rows += pool.picks(worldlm.residuals == "region")
        in_line, others = pool.handed([residual for residual in handed if residual.layer == layer])
        passed += in_line
        dropped += others
    found = partition(rows, passed, worldlm.residuals, is_root)
    return found._replace(dropped=[*found.dropped, *dropped])


def counted(dropped: Iterable[Dropped]) -> dict[str, int]:
    """Reason -> number of residuals that ended here."""
    return dict(sorted(Counter(one.why for one in dropped).items()))


class _Pool:
    """The pool of one key layer after a round: its new mean, and the members' rows."""

    def __init__(
        self,
        run: Run,
        base: RoundManifest,
        layer: str,
        updates: Mapping[str, UpdateManifest],
        new: KeyLayers,
        limits: Limits,
    ) -> None:
        self._run, self._base, self._layer, self._limits = run, base, layer, limits
        self._names = sorted(updates)
        self._shapes = {name: tensor.shape for name, tensor in all_tensors(key_layer(base, layer).model).items()}
        mean = parted(new.files, base.key_layers).layers[layer]
        self._mean = Row(run.store, run.round_dir(base.round + 1), mean)
        self._rows = [_row(run, base, updates[name], layer) for name in self._names]

    def picks(self, with_members: bool) -> list[Offer]:
        """The members' rows as residuals; those out of line with the mean are none.

        Args:
            with_members: flag: the least represented row is also compared with the other members'.
        """
        sums = layer_sums(self._shapes, [self._mean, *self._rows], limits=self._limits)
        means = dict(zip(self._names, sums.cosines()[0, 1:].tolist(), strict=True))
        rows = {
            name: row
            for name, row, square in zip(self._names, self._rows, sums.squares[1:], strict=True)
            if is_in_line(square, sums.squares[0])
        }
        offers = []
        least = min(rows, key=lambda name: (means[name], name), default="")
        for name, row in rows.items():
            residual = picked(self._layer, name, self._base.round + 1, row.folder, row.files)
            others = self._cosines(row) if with_members and name == least else {}
            offers.append(Offer(residual, others, means[name]))
        return offers

    def handed(self, residuals: Sequence[Residual]) -> tuple[list[Offer], list[Dropped]]:
        """Residuals that members have handed up, compared with all members and the mean; and those out of line."""
        offers, dropped = [], []
        for residual in residuals:
            row = Row(self._run.store, residual.folder, residual.files, residual.origin[0])
            sums = layer_sums(self._shapes, [row, self._mean, *self._rows], limits=self._limits)
            if not is_in_line(sums.squares[0], sums.squares[1]):
                dropped.append(Dropped(residual, "out of line"))
                continue
            mean, *members = sums.cosines()[0, 1:].tolist()
            offers.append(Offer(residual, dict(zip(self._names, members, strict=True)), mean))
        return offers, dropped

    def _cosines(self, row: Row) -> dict[str, float]:
        others = [(name, other) for name, other in zip(self._names, self._rows, strict=True) if other is not row]
        sums = layer_sums(self._shapes, [row, *(other for _, other in others)], limits=self._limits)
        return dict(zip((name for name, _ in others), sums.cosines()[0, 1:].tolist(), strict=True))


def _folder(run: Run, update: UpdateManifest) -> str:
    return run.site_dir(update.round, update.site, update.attempt)


def _offers(
    run: Run, base: RoundManifest, residuals: Sequence[Residual], from_above: bool, limits: Limits
) -> list[Offer]:
    """Residuals, compared with every member's newest key layer."""
    offers, newest = [], _newest(run, base) if residuals else []
    for residual in residuals:
        own = key_layer(base, residual.layer).model
        shapes = {name: tensor.shape for name, tensor in all_tensors(own).items()}
        row = Row(run.store, residual.folder, residual.files)
        members = {}
        for update in newest:
            other = _row(run, base, update, residual.layer)
            try:
                members[update.site] = float(layer_sums(shapes, [row, other], limits=limits).cosines()[0, 1])
            except (UpdateRejected, Doubt) as error:  # the member's files are damaged: no residual fits it
                if isinstance(error.__cause__, StoreUnavailable | StoreRefused):
                    raise error.__cause__ from None
        offers.append(Offer(residual, members, from_above=from_above))
    return offers


def _newest(run: Run, base: RoundManifest) -> list[UpdateManifest]:
    """The newest update of each member that has contributed key layers, ordered by name."""
    found = []
    for name, last in sorted(last_updates(run, base.round).items()):
        try:
            update = run.update(last.round, name, last.attempt)
        except CorruptFile:
            continue
        if update is not None and update.key_layers:
            found.append(update)
    return found


def _row(run: Run, base: RoundManifest, update: UpdateManifest, layer: str) -> Row:
    """A key layer of an update."""
    files = parted(update.key_layers, base.key_layers).layers[layer]
    return Row(run.store, _folder(run, update), files, update.site)


def _copied(source: Run, residual: Residual, target: Run, folder: str) -> Residual:
    files = copy_files(source.store, residual.folder, residual.files, target.store, folder)
    return residual.model_copy(update={"folder": folder, "files": files})
