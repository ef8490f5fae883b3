"""The federation file's section `sites`: which sites take part, with which data, on which work pool."""

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
    text_key: Text = Field(default="text", description="column or key with a document's text")
    proportion: float = Field(
        default=1.0, gt=0, le=1, description="share of the site's samples; a site's streams sum to 1"
    )
    repeat: float | None = Field(
        default=None,
        gt=0,
        description="passes over this stream per epoch, instead of proportion; all streams of a site have it, or "
        "none",
        examples=[2],
    )


class Member(Section):
    """What a file says of each member: a site or a federation."""

    name: Name
    paused: bool = Field(default=False, description="if true, it takes part in no round")
    pool: Name | None = Field(default=None, description="Prefect work pool; default: photon-<name>")
    pool_type: PoolType | None = Field(default=None, description="type of the pool; default: deploy.pool_type")
    job_variables: Options = Field(
        default_factory=dict,
        description="job variables of the pool: env, image, resources; any key of the pool's template",
    )

    @property
    def work_pool(self) -> str:
        """The name of its Prefect work pool."""
        return self.pool or f"photon-{self.name}"


class Site(Member):
    streams: list[Stream] = Field(min_length=1, examples=["- {name: web, source: web/*.jsonl}"])
    state_dir: Place | None = Field(
        default=None,
        description="private folder of the site, on its own disk; default: photon-sites/<run>/<site>",
    )

    steps: int | None = Field(
        default=None, ge=1, description="the site's local steps per round; default: local.steps"
    )
    time_limit: Seconds | None = Field(
        default=None,
        description="time limit of the site's local training in a round (s, or 30m, 2h); its steps may end it "
        "earlier",
    )
    data_tokens: int | None = Field(
        default=None,
        ge=1,
        description="the site's prepared training tokens, used by rounds.sampling: tokens; photon prepare prints "
        "the number. Default: the site's claim, up to the median of the others",
    )
    micro_batch: MicroBatch = Field(default=None, description="the site's micro-batch; default: local.micro_batch")
    hardware: Hardware | None = Field(
        default=None, description="the site's machines; photon join --measure prints this section"
    )
    link: Link | None = Field(
        default=None,
        description="the site's link to the store, for photon plan; photon join --measure prints this section",
    )
    shards: Place | None = Field(
        default=None,
        description="folder or URL of the site's prepared shards: photon prepare writes them there, and each of "
        "the site's machines copies them to its state_dir; default: state_dir only",
        examples=["s3://private-bucket/shards"],
    )
    storage: ObjectServer | None = Field(
        default=None, description="server of the site's s3:// places (source, shards); default: the store's server"
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
                    raise wrong(
                        "missing, but other streams of the site have it; write a value such as 1", i, "repeat"
                    )
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
