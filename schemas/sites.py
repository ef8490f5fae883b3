"""The federation file's `sites`: who takes part, with which data, on which work pool."""

from typing import Any

from pydantic import Field, field_validator

from schemas.deploy import PoolType, check_environment
from schemas.hardware import Hardware, Link
from schemas.section import Section
from schemas.values import Name, Place, Text, unique, wrong


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


class Site(Section):
    name: Name
    pool: Name | None = Field(default=None, description="Prefect work pool; photon-<site> if left out")
    pool_type: PoolType | None = Field(default=None, description="its type; deploy.pool_type if left out")
    job_variables: dict[str, Any] = Field(
        default_factory=dict,
        description="what the pool's jobs get: env, image, resources; any key that the pool's template has",
    )
    streams: list[Stream] = Field(min_length=1, examples=["- {name: web, source: web/*.jsonl}"])
    state_dir: Text | None = Field(
        default=None,
        description="private folder of the site, on its own disk; photon-sites/<run>/<site> if left out",
    )

    hardware: Hardware | None = Field(default=None, description="what trains there, for photon plan")
    link: Link | None = Field(default=None, description="how it reaches the store, for photon plan")

    @field_validator("streams")
    @classmethod
    def _streams(cls, streams: list[Stream]) -> list[Stream]:
        unique("stream", [s.name for s in streams])
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
