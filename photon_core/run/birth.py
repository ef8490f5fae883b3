"""What a run keeps from its start (run.json): its recipe, and the ends of its learning-rate schedules."""

from typing import Any

from pydantic import ValidationError

from photon_core.errors import FederationError
from photon_core.run.line import newest_entry
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import RoundManifest, RunManifest
from schemas.presets import apply_preset
from schemas.sections.local import Schedule

# The keys that a recipe sets, without the schedule's warm-up and end, which follow from the run's length.
BROUGHT = (
    *("local.steps", "local.optimizer", "local.optimizer_state", "local.clip_norm"),
    *("local.schedule.name", "local.schedule.alpha"),
    *("server.optimizer", "server.lr", "server.momentum", "server.betas", "server.tau"),
    *("server.schedule", "server.weights"),
)


def check_recipe(first: RunManifest | None, federation: Federation) -> None:
    """Refuse a file with another recipe than its run started with, if that changes how the model learns.

    A recipe is a set of defaults. A run always keeps its own; the file may change single keys of it.

    Raises:
        FederationError: the recipe is another; the message has the line to write.
    """
    if first is None or (then := first.federation.get("recipe")) == federation.recipe:
        return
    now = federation.model_dump(mode="json")
    changed = [key for key in BROUGHT if _at(first.federation, key) not in (None, _at(now, key))]
    if changed:
        raise FederationError(
            f"recipe: run '{first.run}' started with recipe: {then or 'null'}, but this file has recipe: "
            f"{federation.recipe or 'null'}, which changes {', '.join(changed)}; to continue unchanged, write "
            f"`recipe: {then or 'null'}`, and beside it only the keys that you want to change"
        )


def as_born(run: Run, federation: Federation) -> Federation:
    """The file with the schedules' ends of the run's start, unless the file itself sets them.

    The ends are T of the local schedule, in steps, and the last round of the server's. A larger rounds.count moves
    neither end. Nor does another local.steps, or another local.batch_size, by which recipe: photon stretches T. So
    no step's learning rate changes afterwards. Below a parent, T is that of the newest entry.

    Raises:
        FederationError: a warm-up does not fit before the end.
    """
    first = run.run_manifest()
    if first is None:
        return federation
    ends: dict[str, dict[str, int]] = {}
    count, length = _at(first.federation, "rounds.count"), _at(first.federation, "local.steps")
    steps = _at(first.federation, "local.schedule.total_steps") or (count * length if count and length else None)
    local, server = federation.local.schedule, federation.server.schedule
    brought = local.total_steps in (None, _recipes_end(federation))
    if _needs_end(local) and brought and steps not in (None, federation.schedule_steps):
        ends["local"] = {"total_steps": steps}
    rounds = _at(first.federation, "server.schedule.total_rounds") or count
    if server.name != "constant" and server.total_rounds is None and rounds not in (None, federation.rounds.count):
        ends["server"] = {"total_rounds": rounds}
    why = "the ends of a run's schedules are those of its start"
    found = _with_ends(federation, ends, why) if ends else federation
    entry = newest_entry(run) if federation.parent is not None else None
    return found if entry is None else as_entered(found, entry)


def as_entered(federation: Federation, entry: RoundManifest) -> Federation:
    """The file of a federation that trains for its parent: its learning-rate schedule ends with the root's."""
    if not entry.horizon or not _needs_end(federation.local.schedule):
        return federation
    why = f"the schedules of a tree end with its root's, at step {entry.horizon}"
    return _with_ends(federation, {"local": {"total_steps": entry.horizon}}, why)


def _needs_end(schedule: Schedule) -> bool:
    """Whether the learning rate depends on T: its warm-up may be a share of it."""
    return schedule.name != "constant" or schedule.warmup_steps is None


def _recipes_end(federation: Federation) -> int | None:
    """T by the file's preset and recipe, without the file's own value; None if they set none."""
    data = federation.model_dump(mode="json")
    del data["local"]["schedule"]["total_steps"]
    end = _at(apply_preset(data), "local.schedule.total_steps")
    return end if isinstance(end, int) else None


def _with_ends(federation: Federation, ends: dict[str, dict[str, int]], why: str) -> Federation:
    data = federation.model_dump(mode="json")
    for section, end in ends.items():
        data[section]["schedule"] |= end
    try:
        return Federation.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first.get("ctx", {}).get("at", first["loc"])))
        raise FederationError(f"{where}: {first['msg']}; {why}") from None


def _at(data: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None in a run that is older than the key."""
    value: Any = data
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
