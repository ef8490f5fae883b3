"""Tags of task runs: how a program that asks the Prefect server knows step and site. Names are for people."""

from collections.abc import Iterable

STEP = "step:"  # on every task of ours
SITE = "site:"  # on those of one site


def tagged(tags: Iterable[object], prefix: str) -> str:
    """What the tag with this prefix says; empty if there is none."""
    return next((str(tag).removeprefix(prefix) for tag in tags if str(tag).startswith(prefix)), "")
