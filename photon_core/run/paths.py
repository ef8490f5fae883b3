"""All paths of a run in its store: a place is written as a path, and a path is read back as a place.

The name of a run may be `<run>/members/<member>`, for a federation inside a federation. Nothing opens such a run
yet.
"""

import re
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from photon_core.errors import PhotonError
from schemas.sections.values import NAME

_ROUND = "{run}/rounds/{t}"
_SITE = _ROUND + "/sites/{site}"
_ATTEMPT = _SITE + "/{attempt}"
_REGION = _ROUND + "/regions/{region}/{inputs}"
_MEAN = _REGION + "/{attempt}"


class PlaceKind(Enum):
    """The kinds of places, each with its path. A path that matches two kinds is of the first one."""

    RUN = "{run}"
    RUN_JSON = "{run}/run.json"  # the run has started
    NOISE_KEY = "{run}/noise.key"  # secret of the noise on the mean
    ROUNDS = "{run}/rounds"
    ROUND = _ROUND
    ROUND_JSON = _ROUND + "/round.json"  # the round is committed
    ROUND_PART = _ROUND + "/{part}"
    ROUND_SHARD = _ROUND + "/{part}/{shard}"
    REMOVED = _ROUND + "/removed.json"  # photon gc has removed the tensors
    REPORT = _ROUND + "/report.html"
    FINISHED = _ROUND + "/finished/{work}/{number}.json"  # a finished shard of an aggregation
    ATTENTION = _ROUND + "/attention-{work}.json"  # weights of the key layers of some updates
    SITE = _SITE
    EVALUATION = _SITE + "/evaluation-{content}.json"
    DOWN = _SITE + "/down.json"  # residuals for the member
    DOWN_FOLDER = _SITE + "/down"
    DOWN_SHARD = _SITE + "/down/{shard}"
    ATTEMPT = _ATTEMPT
    UPDATE = _ATTEMPT + "/update.json"  # the update is committed
    START = _ATTEMPT + "/start.json"  # round 0: the site's checkpoint is committed
    UPDATE_SHARD = _ATTEMPT + "/{shard}"
    REGION = _REGION
    MEAN = _MEAN
    PARTIAL = _MEAN + "/partial.json"  # the region's mean is committed
    COSINES = _MEAN + "/cosines-{content}.json"
    MEAN_SHARD = _MEAN + "/{part}/{shard}"
    OTHER = _ROUND + "/{rest}"  # any other file in a round's folder


STEM = r"[a-z_]+(?:\.[0-9]+|\.weight|\.bias)?"  # of a shard's name: a kind of moments, or a key layer
SHARDS = {PlaceKind.ROUND_SHARD, PlaceKind.UPDATE_SHARD, PlaceKind.MEAN_SHARD, PlaceKind.DOWN_SHARD}
WIDTHS = {"t": 6, "attempt": 4, "region": 4, "number": 5}  # minimum digits of numbers
PARTS = {
    "run": rf"{NAME.pattern}(?:/members/{NAME.pattern})*",
    "site": NAME.pattern,
    "part": "model|optimizer|moments|download|residuals",
    "inputs": "[0-9a-f]{16}",
    "content": "[0-9a-f]{16}",
    "work": "[0-9a-f]{32}",
    "shard": rf"(?:{STEM}-)?[0-9]{{5,}}-of-[0-9]{{5,}}(?:-[0-9a-f]{{8,16}})?\.safetensors",
    "rest": ".+",
} | {name: f"[0-9]{{{width}}}|[1-9][0-9]{{{width},}}" for name, width in WIDTHS.items()}


@dataclass(frozen=True)
class Place:
    """A folder or a file of a run. Arguments that do not occur in the kind's path keep their defaults.

    Args:
        kind: kind of the place.
        run: name of the run.
        t: number of the round.
        site: name of the site.
        attempt: number of the site's or region's attempt, from 1.
        region: number of the region, from 1.
        inputs: 16 digits of the hash of a region's inputs.
        content: 16 digits of the hash of the evaluated model, or of the compared means.
        work: 32 digits of the hash of the inputs of an aggregation, or of its attention.
        number: number of the shard, from 1.
        part: one of the folders of shards.
        shard: name of a tensor file.
        rest: path below the round's folder.
    """

    kind: PlaceKind
    run: str
    t: int = 0
    site: str = ""
    attempt: int = 0
    region: int = 0
    inputs: str = ""
    content: str = ""
    work: str = ""
    number: int = 0
    part: str = ""
    shard: str = ""
    rest: str = ""

    @property
    def path(self) -> str:
        """The path relative to the store.

        Raises:
            PhotonError: an argument cannot be part of a path.
        """
        return self.kind.value.format_map({name: self._text(name) for name in _NAMES[self.kind]})

    def _text(self, name: str) -> str:
        value = getattr(self, name)
        text = f"{value:0{WIDTHS[name]}d}" if name in WIDTHS else str(value)
        if _PARTS[name].fullmatch(text):
            return text
        if name in ("run", "site"):
            raise PhotonError(f"{text!r} cannot name a {name}: use letters, digits, '.', '_' and '-'")
        if name == "t":
            raise PhotonError(f"there is no round {value}: rounds count from 0")
        raise PhotonError(f"{text[:200]!r} cannot be the {name} of a path of run '{self.run}'")


def place_at(path: str) -> Place | None:
    """The place of a path that is relative to the store; None if no run has such a path."""
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(path):
            parts: dict[str, Any] = match.groupdict()
            return Place(kind, **parts | {name: int(parts[name]) for name in parts if name in WIDTHS})
    return None


_PARTS = {name: re.compile(pattern) for name, pattern in PARTS.items()}
_NAMES = {kind: re.findall(r"{(\w+)}", kind.value) for kind in PlaceKind}
_PATTERNS = {
    kind: re.compile(re.sub(r"{(\w+)}", lambda m: f"(?P<{m[1]}>{PARTS[m[1]]})", kind.value.replace(".", r"\.")))
    for kind in PlaceKind
}
assert set(PARTS) == {field.name for field in fields(Place)} - {"kind"}
