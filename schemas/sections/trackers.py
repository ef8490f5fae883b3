"""The federation file's section `trackers`: experiment trackers that get the rounds' metrics, beside the store."""

from typing import Literal

from pydantic import Field

from schemas.sections.base import Section
from schemas.sections.values import Options, Place


class Tracker(Section):
    """One experiment tracker, through Composer's logger. It has the run's name and one step per round."""

    name: Literal["tensorboard", "mlflow", "wandb"]
    folder: Place | None = Field(
        default=None,
        description="folder of the tracker's files at the coordinator; default: photon-trackers beside this file",
    )
    options: Options = Field(
        default_factory=dict, description="keyword arguments of Composer's logger", examples=["{project: photon}"]
    )
