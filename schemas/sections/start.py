"""The federation file's section `start`: the origin of round 0's model (InitModel)."""

from pydantic import Field, model_validator

from schemas.sections.base import Section
from schemas.sections.values import Name, Place, wrong


class Start(Section):
    """The model that the run starts from: a checkpoint, another run's round, or one site's checkpoint.
    By default it is initialised from the seed."""

    checkpoint: Place | None = Field(
        default=None,
        description="safetensors file or folder of Photon's or of a Hugging Face GPT-2: path or fsspec URL; "
        "with site, a path at that site",
        examples=["s3://models/gpt2"],
    )
    run: Name | None = Field(default=None, description="another run, from whose model this run starts")
    round: int | None = Field(default=None, ge=0, description="round of that run; default: its latest")
    store: Place | None = Field(default=None, description="store of that run; default: this run's store")
    site: Name | None = Field(
        default=None, description="site that holds the checkpoint and uploads it when the run starts"
    )

    @model_validator(mode="after")
    def _one(self) -> "Start":
        if self.run is not None and self.checkpoint is not None:
            raise wrong("is given beside run, but a run has one start; drop one of them", "checkpoint")
        if self.site is not None and self.checkpoint is None:
            raise wrong(
                "names a site, but not its file; write checkpoint: with the path at that site"
                + ("" if self.run is None else ", or drop site"),
                "site",
            )
        for key in ("round", "store"):
            if getattr(self, key) is not None and self.run is None:
                raise wrong("belongs to a run; write run: with its name, or drop it", key)
        return self

    @property
    def from_seed(self) -> bool:
        return self.run is None and self.checkpoint is None
