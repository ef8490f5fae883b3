"""Fit(q) of WorldLM's Algorithm 1, without its rounds: how a federation enters, and what it contributes.

    enter (lines 3-6):  B <- B_p;  K <- Attn(K, [K, K_p, residuals]); a committed round of the federation's chain
    contribute:         the change of its backbone, its key layers, its residuals, the sum of its members' tokens

The parent's round t reads the committed contribution only. The federation keeps its own store, rounds and file.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from photon_core.aggregation.choice import OPTIONS, PARENT, UNCHOSEN, choose, with_choice
from photon_core.aggregation.entry import OWN, Entered, Row, enter_layers, fetched
from photon_core.aggregation.moments import moments_for
from photon_core.aggregation.parts import backbone, key_files
from photon_core.aggregation.residuals import in_order, row_name
from photon_core.aggregation.routing import hand_up, intact, receive, residuals_for
from photon_core.errors import PhotonError, StoreConflict
from photon_core.evidence.metrics import reported
from photon_core.run.line import newest, newest_entry, whole_line
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.provenance import federation_sha256, utc_now, versions
from photon_core.run.rollback import roll_back
from photon_core.run.run import Run, model_sha256, run_of
from photon_core.run.start import Initial, from_round
from photon_core.tensors.numerics import dots
from photon_core.tensors.reader import TensorReader
from photon_core.tensors.shards import all_tensors, copy_files, put_file, shard_plan
from photon_core.tensors.writer import ShardWriter
from photon_core.update.codecs.lossless import Lossless, encode
from schemas.federation import Federation
from schemas.manifests import Attention, FileEntry, ParentRef, Residual, RoundManifest, TensorEntry, UpdateManifest
from schemas.protocol import PROTOCOL
from schemas.sections.worldlm import AUTO

CHUNK = 1 << 20  # elements


@dataclass(frozen=True)
class Call:
    """A parent's call of a member that is a federation, for one round.

    Args:
        parent: run of the parent.
        federation: file of the parent.
        ref: reference to the round, the member and the attempt.
        residuals: key layers that the parent routes to the member.
        horizon: T of the learning-rate schedule, in steps.
    """

    parent: Run
    federation: Federation
    ref: ParentRef
    residuals: Sequence[Residual]
    horizon: int

    @property
    def base(self) -> RoundManifest:
        """The parent's previous round, whose model the member enters with."""
        base = self.parent.round(self.ref.round - 1)
        if base is None:
            raise PhotonError(f"round {self.ref.round - 1} of run '{self.parent.run}' is not committed")
        return base

    @property
    def folder(self) -> str:
        """Folder of the files of `base`, in the parent's store."""
        return self.parent.files_dir(self.ref.round - 1)


def call_of(federation: Federation, member: str, t: int, attempt: int = 1) -> Call:
    """The call of a member for round t of its parent.

    Raises:
        PhotonError: round t - 1 is not committed.
    """
    parent = run_of(federation)
    ref = ParentRef(
        store=parent.store.url,
        run=parent.run,
        round=t,
        sha256=parent.round_sha256(t - 1),
        member=member,
        attempt=attempt,
    )
    above = newest_entry(parent)
    horizon = above.horizon if above is not None else federation.schedule_steps
    return Call(parent, federation, ref, intact(parent, parent.residuals(t, member)), horizon)


def next_call(federation: Federation, member: str, t: int) -> Call:
    """The call of a member for round t, also before its residuals are sent.

    Raises:
        PhotonError: round t - 1 is not committed.
    """
    call = call_of(federation, member, t)
    return replace(call, residuals=residuals_for(call.parent, federation, t, member))


def initial_of(call: Call, folder: Path) -> Initial:
    """Round 0 of a member's run: the parent's model in the first call."""
    base = call.base
    files = call.parent.store.fetch_all(base.model, call.folder, folder, call.federation.aggregation.connections)
    source = f"{call.parent.store.locate(call.parent.run)} round {base.round}"
    return Initial(list(files), from_round(source, call.ref.sha256, base.model_sha256))


def entered(run: Run, ref: ParentRef) -> RoundManifest | None:
    """The newest entry on the run's line, if it belongs to this call; else None."""
    found = newest_entry(run)
    return found if found is not None and found.parent == ref else None


def trials(run: Run, federation: Federation, call: Call, folder: Path) -> dict[str, list[FileEntry]]:
    """With `temperature: auto`, the model of each option with which the federation could enter. They are not
    committed, and lie in the folder of its next round. None if it has entered, or has no own key layers.

    Args, errors: as for `enter`.
    """
    worldlm = federation.worldlm
    if worldlm is None or worldlm.temperature != AUTO or not call.base.key_layers or entered(run, call.ref):
        return {}
    _follow_back(run, federation, call)
    own = newest(run)
    if own is None or not own.entries:
        return {}
    return {option: _model(run, federation, call, own, folder, option)[0] for option in OPTIONS}


def enter(
    run: Run, federation: Federation, call: Call, folder: Path, losses: Mapping[str, float] | None = None
) -> RoundManifest:
    """Commit the federation's entry for this call, and return it. Idempotent: an entry that exists is returned.

    Args:
        run, federation: run and file of the member.
        call: call of the member.
        folder: scratch space on this machine.
        losses: losses of `trials`, by which it chooses; if there are none, the temperature of auto is 1.

    Raises:
        StoreConflict: another process has committed a round in the meantime.
        CorruptFile: a file does not match its manifest.
    """
    if (known := entered(run, call.ref)) is not None:
        return known
    _follow_back(run, federation, call)
    own = newest(run)
    if own is None:
        raise PhotonError(f"run '{run.run}' has no round yet: its first entry creates round 0")
    try:
        run.commit_round(_entry(run, federation, call, own, folder, losses or {}))
    except StoreConflict:
        if entered(run, call.ref) is None:
            raise
    known = entered(run, call.ref)
    assert known is not None
    return known


def _model(
    run: Run, federation: Federation, call: Call, own: RoundManifest, folder: Path, option: str
) -> tuple[list[FileEntry], dict[str, Attention]]:
    """The model to enter with after round `own`, and its attention. Writes the files."""
    base, model = call.base, Place(PlaceKind.ROUND_PART, run.run, own.round + 1, part="model").path
    files = copy_files(call.parent.store, call.folder, backbone(base).model, run.store, model, "model/")
    found = _entered_layers(run, federation, call, own, folder, option)
    files += [put_file(run.store, path, model, "model/") for path in found.paths]
    return files, found.attention


def _entry(
    run: Run,
    federation: Federation,
    call: Call,
    own: RoundManifest,
    folder: Path,
    losses: Mapping[str, float],
) -> RoundManifest:
    """The entry after round `own` of the member. Writes its files."""
    t, base = own.round + 1, call.base
    files, attention = _model(run, federation, call, own, folder, choose(losses) if losses else UNCHOSEN)
    return RoundManifest(
        run=run.run,
        round=t,
        kind="entry",
        parent=call.ref,
        entries=own.entries + 1,
        horizon=call.horizon,
        key_layers=base.key_layers,
        attention=with_choice(attention, losses) if losses else attention,
        down=own.down,
        received=receive(call.parent, run, t, call.residuals),
        model_sha256=model_sha256(files),
        model=files,
        **_moments_to_enter_with(run, own, federation, call),
        global_step=base.global_step,
        total_tokens=own.total_tokens,
        behind=own.behind,
        federation_sha256=federation_sha256(federation),
        previous_sha256=run.round_sha256(own.round),
        created=utc_now(),
        versions=versions(),
    )


def look_ahead(run: Run, federation: Federation, call: Call, folder: Path) -> RoundManifest | Entered:
    """What the federation enters, or has entered, the call's round with. Nothing is committed.

    Args:
        run, federation: run and file of the member; the run has a round.
        call: call of the member.
        folder: folder for the files, on this machine.

    Returns:
        the committed entry; else the key layers of the entry that `enter` would commit now. The rest of its model
        is the backbone of `call.base`. With `temperature: auto` it chooses only when it enters: they are those of
        temperature 1.

    Raises:
        CorruptFile: a file does not match its manifest.
    """
    known, attempt = newest_entry(run), {"attempt": call.ref.attempt}  # it may be that of another attempt
    if known and known.parent and known.parent.model_copy(update=attempt) == call.ref:
        return known
    to = _before_what_is_behind(run, call)
    own = newest(run) if to is None else run.round(to)
    assert own is not None
    return _entered_layers(run, federation, call, own, folder, UNCHOSEN)


def _entered_layers(
    run: Run, federation: Federation, call: Call, own: RoundManifest, folder: Path, option: str
) -> Entered:
    """The key layers of the entry after round `own` of the member."""
    layers = call.base.key_layers
    if federation.worldlm is None or not layers:
        return Entered(folder)
    pools = _pools(run, own, call, folder, federation.aggregation.connections)
    place, size = folder / option, federation.aggregation.shard_bytes
    place.mkdir(parents=True, exist_ok=True)
    return enter_layers(pools, layers, federation.worldlm, place, size, option)


def _follow_back(run: Run, federation: Federation, call: Call) -> None:
    """Roll back to before the entries into rounds that the parent has rolled back."""
    while (to := _before_what_is_behind(run, call)) is not None:
        who = f"round {call.ref.round} of run '{call.parent.run}'"
        with suppress(StoreConflict):  # another process has rolled back, or committed a round
            roll_back(run, federation, to, "the parent's rounds since then were rolled back", who)


def _before_what_is_behind(run: Run, call: Call) -> int | None:
    """The round before the run's entries into rounds that the parent has rolled back. None if there are no such
    entries, or if photon gc has removed that round's tensors: then the run continues from its latest round."""
    latest, to = run.latest(), None
    for manifest in () if latest is None else whole_line(run, latest):
        if (into := manifest.parent) is not None:
            if into.run != call.parent.run or not call.base.left_behind(into.round):
                break
            to = manifest.round - 1
    return to if to is not None and run.removed(run.holder(to)) is None else None


def _pools(run: Run, own: RoundManifest, call: Call, folder: Path, connections: int) -> dict[str, list[Row]]:
    """The pool of each key layer: the federation's own row, the parent's, then residuals in order.

    Before its first entry, the federation has no own row: the parent's takes its place.
    """
    above, here = call.parent.store, folder / "fetched"
    theirs = fetched(PARENT, above, call.folder, key_files(call.base), here, connections)
    mine = theirs._replace(name=OWN)
    if own.entries:
        mine = fetched(OWN, run.store, run.files_dir(own.round), key_files(own), here, connections)
    pools = {layer: [mine, theirs] for layer in call.base.key_layers}
    for residual in in_order(call.residuals):
        row = fetched(row_name(residual), above, residual.folder, residual.files, here, connections)
        pools[residual.layer].append(row)
    return pools


def _moments_to_enter_with(run: Run, own: RoundManifest, federation: Federation, call: Call) -> dict[str, Any]:
    """Fields of the entry for averaged moments: the parent's, else the federation's own newest. None if the
    federation does not average moments, or if neither fit its optimizer."""
    optimizer, layers = federation.local.optimizer.name, call.base.key_layers
    for of, base in (call.parent, call.base), (run, own):
        found = moments_for(base.moments, federation.model, optimizer, layers)
        if found and federation.local.optimizer_state == "average":
            to = Place(PlaceKind.ROUND_PART, run.run, own.round + 1, part="moments").path
            files = copy_files(of.store, of.files_dir(base.round), found, run.store, to, "moments/")
            return {"moments": files, "moment_sizes": base.moment_sizes, "moment_ratio": base.moment_ratio}
    return {}


def rounds_of_call(run: Run, entry: RoundManifest) -> list[RoundManifest]:
    """The rounds that the federation has trained between an entry and the next, the oldest first.

    Raises:
        PhotonError: the entry was rolled back.
    """
    latest = run.latest()
    found: list[RoundManifest] = []
    for manifest in () if latest is None else whole_line(run, latest):
        if manifest.round == entry.round:
            return found[::-1]
        if manifest.kind == "entry":
            found = []
        elif manifest.kind == "train":
            found.append(manifest)
    raise PhotonError(
        f"run '{run.run}' was rolled back to before round {entry.round}, its entry, and must enter again"
    )


def rounds_to_make(run: Run, federation: Federation, entry: RoundManifest) -> Iterator[int]:
    """Numbers of the call's remaining rounds. Each must be committed before the next is requested.

    Raises:
        PhotonError: the call is over: the federation has entered a later round of its parent, or was rolled back.
    """
    while len(rounds_of_call(run, entry)) < _count(federation):
        latest, last = run.latest(), newest_entry(run)
        assert latest is not None and last is not None
        if last.round != entry.round:
            later = f"run '{run.run}' has entered another round of its parent since round {entry.round}, its entry"
            raise PhotonError(f"{later}: this call is over")
        yield latest + 1


def _count(federation: Federation) -> int:
    """Rounds of a call."""
    return federation.worldlm.rounds if federation.worldlm else 1


def contribute(run: Run, federation: Federation, call: Call, entry: RoundManifest) -> UpdateManifest:
    """Commit the federation's contribution to its parent's round, and return it. Idempotent: one that exists is
    returned.

    Args:
        run, federation: run and file of the member.
        call: call of the member.
        entry: entry of the call, in the member's chain.

    Raises:
        PhotonError: no round was trained since the entry.
        CorruptFile: a file does not match its manifest.
    """
    ref, parent = call.ref, call.parent
    if (known := parent.update(ref.round, ref.member, ref.attempt)) is not None:
        return known
    trained = rounds_of_call(run, entry)[: _count(federation)]  # it may have trained on since
    if not trained:
        raise PhotonError(
            f"run '{run.run}' has trained no round since it entered round {ref.round} of '{ref.run}'"
        )
    last, folder = trained[-1], parent.site_dir(ref.round, ref.member, ref.attempt)
    files, norm = _write_change(run, entry, last, parent, folder, federation.aggregation.shard_bytes)
    layers = key_files(last)
    moments = _moments_to_hand_up(federation, call, last)
    manifest = UpdateManifest(
        run=parent.run,
        round=ref.round,
        site=ref.member,
        attempt=ref.attempt,
        base_sha256=call.base.model_sha256,
        codec=Lossless.name,
        noise=math.hypot(*(manifest.noise for manifest in trained)),
        files=files,
        key_layers=copy_files(run.store, run.files_dir(last.round), layers, parent.store, folder),
        moments=copy_files(run.store, run.files_dir(last.round), moments, parent.store, folder),
        entry_sha256=entry.model_sha256,
        entry=entry.attention,
        residuals=hand_up(run, last.up, parent, folder),
        tokens=last.total_tokens - entry.total_tokens,
        steps=last.global_step - entry.global_step,
        metrics={**_metrics(trained), "delta_norm": norm},
        data_sha256="",
        versions=versions(),
        previous_sha256=parent.round_sha256(ref.round - 1),
        protocol=PROTOCOL,
    )
    try:
        parent.commit_update(manifest)
    except StoreConflict:
        known = parent.update(ref.round, ref.member, ref.attempt)
        assert known is not None
        return known
    return manifest


def _moments_to_hand_up(federation: Federation, call: Call, last: RoundManifest) -> list[FileEntry]:
    """The averaged moments, where the parent averages such, and none of this federation's noise is beside them."""
    above = call.federation.local
    noisy = federation.update.noise_multiplier or federation.server.noise_multiplier
    if noisy or above.optimizer_state != "average":
        return []
    return moments_for(last.moments, federation.model, above.optimizer.name, last.key_layers)


def _write_change(
    run: Run, entry: RoundManifest, last: RoundManifest, parent: Run, folder: str, shard_bytes: int
) -> tuple[list[FileEntry], float]:
    """Write the backbone's change since the entry to the parent's store, in float32. Returns files and norm."""
    before, after = backbone(entry).model, backbone(last).model
    tensors = {
        name: TensorEntry(dtype=Lossless.dtype, shape=tensor.shape) for name, tensor in all_tensors(before).items()
    }
    squares, plan = 0.0, shard_plan(tensors, shard_bytes)
    with (
        TensorReader(run.store, run.files_dir(entry.round), before) as old,
        TensorReader(run.store, run.files_dir(last.round), after) as new,
        ShardWriter(parent.store, folder, "", plan) as writer,
    ):
        for name in writer.order:
            for theta, theta_k in zip(old.chunks(name, CHUNK), new.chunks(name, CHUNK), strict=True):
                change = np.subtract(theta_k, theta)[None]
                squares += float(dots(change, change)[0])
                writer.write(name, encode(theta, theta_k))
        old.verify()
        new.verify()
        return writer.close(), math.sqrt(squares)


def _metrics(trained: Sequence[RoundManifest]) -> dict[str, float]:
    """Training metrics of the call: means over its rounds."""
    found: dict[str, float] = {}
    for metric in reported("training"):
        values = [manifest.metrics[metric.head] for manifest in trained if metric.head in manifest.metrics]
        if metric.sites and values:
            found[metric.head] = sum(values) / len(values)
    return found
