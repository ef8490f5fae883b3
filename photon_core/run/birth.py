"""What a run has had since its birth (run.json): its recipe, and where its learning-rate schedules end."""

from typing import Any

from pydantic import ValidationError

from photon_core.errors import FederationError
from photon_core.run.line import newest_entry
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import RoundManifest, RunManifest
from schemas.presets import apply_preset
from schemas.sections.local import Schedule

# What a recipe brings. The schedule's warm-up and end are not among it: they follow from the run's length.
BROUGHT = (
    *("local.steps", "local.optimizer", "local.optimizer_state", "local.clip_norm"),
    *("local.schedule.name", "local.schedule.alpha"),
    *("server.optimizer", "server.lr", "server.momentum", "server.betas", "server.tau"),
    *("server.schedule", "server.weights"),
)


def check_recipe(birth: RunManifest | None, federation: Federation) -> None:
    """Refuse a file that gets another recipe than its run was born with, where that changes how it learns.

    A recipe is a set of defaults. A run keeps its own for good; each key of it may be changed by the file.

    Raises:
        FederationError: with the line to write.
    """
    if birth is None or (then := birth.federation.get("recipe")) == federation.recipe:
        return
    now = federation.model_dump(mode="json")
    changed = [key for key in BROUGHT if _at(birth.federation, key) not in (None, _at(now, key))]
    if changed:
        raise FederationError(
            f"recipe: run '{birth.run}' was begun with recipe: {then or 'null'}, and this file gets recipe: "
            f"{federation.recipe or 'null'}, which changes {', '.join(changed)}; to go on as before write "
            f"`recipe: {then or 'null'}`, and beside it the keys that are to change on purpose"
        )


def as_born(run: Run, federation: Federation) -> Federation:
    """The file with its schedules' ends where the run's birth has put them, unless the file itself says where.

    The ends are T of the local schedule, in steps, and the last round of the server's. Raising rounds.count later
    moves neither, nor does changing local.steps, or local.batch_size, by which recipe: photon stretches T: no
    step's learning rate becomes another than it was. Below a parent, T is that of the newest entry.

    Raises:
        FederationError: a warm-up does not fit into them.
    """
    birth = run.birth()
    if birth is None:
        return federation
    ends: dict[str, dict[str, int]] = {}
    count, length = _at(birth.federation, "rounds.count"), _at(birth.federation, "local.steps")
    steps = _at(birth.federation, "local.schedule.total_steps") or (count * length if count and length else None)
    local, server = federation.local.schedule, federation.server.schedule
    brought = local.total_steps in (None, _recipes_end(federation))
    if _needs_end(local) and brought and steps not in (None, federation.schedule_steps):
        ends["local"] = {"total_steps": steps}
    rounds = _at(birth.federation, "server.schedule.total_rounds") or count
    if server.name != "constant" and server.total_rounds is None and rounds not in (None, federation.rounds.count):
        ends["server"] = {"total_rounds": rounds}
    why = "this run's schedules end where they did at its birth"
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
    """T as the file's preset and recipe bring it, whatever the file itself says; None if they bring none."""
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
    here: Any = data
    for part in key.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here
