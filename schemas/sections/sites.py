"""The federation file's `sites`: who takes part, with which data, on which work pool."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from schemas.sections.base import Section
from schemas.sections.deploy import ObjectServer, PoolType, check_environment
from schemas.sections.hardware import Hardware, Link
from schemas.sections.values import MicroBatch, Name, Options, Place, Seconds, Text, is_s3, unique, wrong


class Stream(Section):
    """One data source of a site."""

    name: Name
    source: Place = Field(
        examples=["texts/*.jsonl"],
        description="fsspec URL or path, globs allowed: .jsonl .txt .parquet (.gz .zst)",
    )
    text_key: Text = Field(default="text", description="the column or key that holds a document's text")
    proportion: float = Field(
        default=1.0, gt=0, le=1, description="share of the site's samples; a site's streams sum to 1"
    )
    repeat: float | None = Field(
        default=None,
        gt=0,
        description="instead of proportions, at all of a site's streams: how often an epoch passes over this one",
        examples=[2],
    )


class Site(Section):
    name: Name
    paused: bool = Field(default=False, description="takes no part in rounds until this is taken back")
    pool: Name | None = Field(default=None, description="Prefect work pool; photon-<site> if left out")
    pool_type: PoolType | None = Field(default=None, description="its type; deploy.pool_type if left out")
    job_variables: Options = Field(
        default_factory=dict,
        description="what the pool's jobs get: env, image, resources; any key that the pool's template has",
    )
    streams: list[Stream] = Field(min_length=1, examples=["- {name: web, source: web/*.jsonl}"])
    state_dir: Place | None = Field(
        default=None,
        description="private folder of the site, on its own disk; photon-sites/<run>/<site> if left out",
    )

    steps: int | None = Field(default=None, ge=1, description="its local steps a round; local.steps if left out")
    time_limit: Seconds | None = Field(
        default=None, description="its local training of a round ends after so long (s, or 30m, 2h), or its steps"
    )
    data_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens that it has prepared for training, by which rounds.sampling: tokens draws it; photon "
        "prepare prints it. If left out, what the site says, up to the median of the others",
    )
    micro_batch: MicroBatch = Field(default=None, description="its own; local.micro_batch if left out")
    hardware: Hardware | None = Field(
        default=None, description="what trains there; photon join --measure prints it"
    )
    link: Link | None = Field(
        default=None, description="how it reaches the store, for photon plan; photon join --measure prints it"
    )
    shards: Place | None = Field(
        default=None,
        description="the site's own folder or URL for prepared shards: photon prepare puts them there, and each "
        "of the site's machines copies them to its state_dir; in state_dir alone if left out",
        examples=["s3://private-bucket/shards"],
    )
    storage: ObjectServer | None = Field(
        default=None, description="the server of the site's s3:// places (source, shards); the store's if left out"
    )

    @property
    def on_s3(self) -> bool:
        """Whether a source or the shards are on S3."""
        return any(is_s3(place) for place in (self.shards or "", *(stream.source for stream in self.streams)))

    @field_validator("streams")
    @classmethod
    def _streams(cls, streams: list[Stream]) -> list[Stream]:
        unique("stream", [s.name for s in streams])
        if any(s.repeat is not None for s in streams):
            for i, stream in enumerate(streams):
                if stream.repeat is None:
                    raise wrong("missing, but other streams of the site have it; write one such as 1", i, "repeat")
                if stream.proportion != 1:
                    raise wrong("proportion and repeat exclude each other; drop one of them", i, "proportion")
            return streams
        total = sum(s.proportion for s in streams)
        if abs(total - 1) > 1e-6:
            given = " + ".join(f"{s.proportion:g}" for s in streams)
            scaled = [round(s.proportion / total, 4) for s in streams[:-1]]
            scaled.append(round(1 - sum(scaled), 4))
            raise wrong(
                f"the proportions {given} sum to {total:g}, not to 1; write {' + '.join(map(str, scaled))}"
            )
        return streams

    @field_validator("job_variables")
    @classmethod
    def _job_variables(cls, variables: dict[str, Any]) -> dict[str, Any]:
        check_environment(variables.get("env", {}))
        return variables

    @field_validator("state_dir")
    @classmethod
    def _state_dir(cls, state_dir: str | None) -> str | None:
        if state_dir is not None and "://" in state_dir:
            raise ValueError("is a URL, but private state stays on the site's own disk; write a folder")
        return state_dir

    @model_validator(mode="after")
    def _storage(self) -> "Site":
        if self.storage is not None and not self.on_s3:
            raise wrong("is for s3:// places, but neither a source nor shards is one; drop it", "storage")
        return self
