"""The updates that a round aggregates: those that its members have committed, each checked on its own."""

from collections.abc import Mapping
from functools import partial

from photon_core.aggregation.attempts import is_done, newest_update
from photon_core.aggregation.blame import Suspects
from photon_core.aggregation.checks import check_counts
from photon_core.errors import UpdateRejected
from photon_core.run.members import FederationMember, Member, members
from photon_core.run.run import Run
from photon_core.update.settings import check_settings
from schemas.federation import Federation
from schemas.manifests import UpdateManifest


def gather(
    run: Run,
    federation: Federation,
    t: int,
    sampled: list[str],
    left_out: Mapping[str, str],
    rejected: Mapping[str, str] | None,
) -> tuple[dict[str, UpdateManifest], dict[str, str]]:
    """The committed updates by member, and the reasons of the sampled members without a usable update.

    Args:
        run, federation, t: run, federation file and round.
        sampled: names of the sampled members.
        left_out: reasons of the members whose steps ended without an update.
        rejected: reasons of the members whose update is known to be bad.
    """
    reasons, updates, suspects = {**left_out, **(rejected or {})}, {}, Suspects(run, t)
    known = members(federation)
    for site in sampled:
        if site in (rejected or {}):
            continue
        try:
            one = known[site]
            update = suspects.read(site, partial(newest_update, run, one, t))
            if update is None:
                reasons.setdefault(site, "no update was committed")
                continue
            check_settings(one, update, left_out.get(site, ""))
            _check_work(one, update)
        except UpdateRejected as error:
            reasons[site] = error.reason
        else:
            updates[site] = update if federation.server.weights != "fednova" else _counted(one, update)
            reasons.pop(site, None)  # the store has the update, whatever the task reported
    return updates, reasons


def usable(run: Run, one: Member, t: int, attempt: int) -> UpdateManifest | None:
    """The member's update for round t, of this attempt or a later one, if the round can aggregate it."""
    update = is_done(run, one, t, attempt)
    try:
        if update is not None:
            check_settings(one, update, "")
            _check_work(one, update)
    except UpdateRejected:
        return None
    return update


def _check_work(one: Member, update: UpdateManifest) -> None:
    """Refuse more work than this member can do. The check of a manifest knows only the largest member's limits.

    Raises:
        UpdateRejected: the update claims too many tokens or local steps, or more tokens than its steps can have,
            or has moments although none are averaged; those of a federation are ignored, for it cannot train
            again because its parent's file was edited.
    """
    unasked = update.moments and one.federation.local.optimizer_state != "average"
    if unasked and not isinstance(one, FederationMember):
        raise UpdateRejected(one.name, "it has optimizer moments, but local.optimizer_state is not average")
    if update.residuals and not isinstance(one, FederationMember):
        raise UpdateRejected(one.name, "it hands up residuals, but it is no federation")
    own = one.most()
    check_counts(one.name, update, own)
    most = update.steps * own.a_step
    if update.tokens > most:
        claim = f"it claims {update.tokens} tokens in {update.steps} local steps"
        raise UpdateRejected(one.name, f"{claim}; at most {most} are possible")


def _counted(one: Member, update: UpdateManifest) -> UpdateManifest:
    """The update with the number of local steps that FedNova divides its change by."""
    return update.model_copy(update={"steps": max(update.steps, one.least_steps())})
