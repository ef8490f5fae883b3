"""Tags of task runs: programs that query the Prefect server read step and site from them. Names are for people."""

import re
from collections.abc import Iterable

STEP = "step:"  # on every task of Photon
SITE = "site:"  # on every task of one site


def tagged(tags: Iterable[object], prefix: str) -> str:
    """The rest of the tag with this prefix; empty if there is none."""
    return next((str(tag).removeprefix(prefix) for tag in tags if str(tag).startswith(prefix)), "")


def artifact_key(run: str, what: str) -> str:
    """Key of an artifact of a run: Prefect allows lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", f"photon-{run}-{what}".lower())
