"""The federation file's `federations` and `parent`: its place in a tree of federations."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from schemas.sections.base import Section
from schemas.sections.deploy import Storage
from schemas.sections.hardware import Link
from schemas.sections.server import ADAPTIVE, WITH_MOMENTUM, Server
from schemas.sections.sites import Member
from schemas.sections.start import Start
from schemas.sections.values import Name, Place, wrong
from schemas.sections.worldlm import WorldLM

PLAIN = {"server": {"optimizer": "fedavg", "lr": 1.0}}
ENDLESS = {"rounds": {"count": None}}


class Child(Member):
    """A federation that is a member of this one. It has its own file, store, run and coordinator."""

    federation: Place | None = Field(
        default=None,
        description="path or URL of its federation file; default: the member keeps it, and it is not read here",
        examples=["europe.yaml"],
    )
    data_tokens: int | None = Field(
        default=None,
        ge=1,
        description="prepared training tokens of all its sites, used by rounds.sampling: tokens. Default: the "
        "member's claim, up to the median of the others",
    )
    link: Link | None = Field(default=None, description="the member's link to the store, for photon plan")


class Parent(Section):
    """The federation that this one is a member of. Its rounds start those of this one: rounds.count is refused."""

    store: Place = Field(
        description="fsspec URL or path of the parent's rounds", examples=["s3://bucket/photon-world"]
    )
    storage: Storage = Storage()
    run: Name = Field(description="name of the parent's run", examples=["world"])
    member: Name = Field(description="this federation's name in the parent's file", examples=["europe"])

    @model_validator(mode="after")
    def _storage(self) -> "Parent":
        self.storage.check(self.store)
        if self.storage.block is not None:
            raise wrong(
                "is a block of the federation's own Prefect server; for the parent's store write profile, or put "
                "the credentials into the environment",
                *("storage", "block"),
            )
        return self


def layers(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values that follow from a file's place in a tree. They override presets; the file overrides them.

    A federation with a parent trains whenever the parent requests it, and takes a plain mean. A tree has key
    layers by default. With key layers, the weights of the members are the same in both means.

    Args:
        data: mapping of the file, as written.
    """
    child, inner = data.get("parent") is not None, bool(data.get("federations"))
    worldlm = data.get("worldlm", {} if child or inner else None)
    found: list[dict[str, Any]] = [PLAIN, ENDLESS] if child else []
    if inner:
        found.append({"sites": []})
    if isinstance(worldlm, Mapping):
        found.append({"worldlm": {}})
        weights = worldlm.get("weights", WorldLM().weights)
        if weights in ("uniform", "tokens"):
            found.append({"server": {"weights": weights}})
    return found


def refuse_below_parent(count: int | None, server: Server, start: Start) -> None:
    """Refuse settings that a federation with a parent does not decide.

    Args:
        count: rounds.count of the federation.
        server, start: sections of its file.

    Raises:
        PydanticCustomError: at the key.
    """
    if count is not None:
        raise wrong(
            f"{count} rounds, but a federation with parent trains worldlm.rounds in each round of its parent; "
            "drop it",
            *("rounds", "count"),
        )
    if server.optimizer in (*WITH_MOMENTUM, *ADAPTIVE):
        raise wrong(
            f"{server.optimizer} keeps moments of a backbone that each round of the parent replaces; with parent "
            "write fedavg, or drop it",
            *("server", "optimizer"),
        )
    if server.schedule.name != "constant" and server.schedule.total_rounds is None:
        raise wrong(
            f"{server.schedule.name} ends with rounds.count, which a federation with parent does not have; "
            "write total_rounds, or constant",
            *("server", "schedule", "name"),
        )
    if not start.from_seed:
        key = "run" if start.run is not None else "checkpoint"
        raise wrong("is given, but a federation with parent starts from its parent's model; drop it", "start", key)
