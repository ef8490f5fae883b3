"""The federation file's sections `storage` and `deploy`: store, work pools, schedule, notifications."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.sections.base import Section
from schemas.sections.cron import cron_problem
from schemas.sections.values import Name, Place, Seconds, Text, is_s3, wrong

PoolType = Literal["process", "docker", "kubernetes"]
BLOCK = re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]*")
HEARTBEAT_LEAST = 30.0  # Prefect's minimum


def _block(value: str) -> str:
    if not BLOCK.fullmatch(value):
        raise ValueError("is not the name of a Prefect block; write its type and name, such as slack-webhook/ops")
    return value


def check_environment(env: Any) -> None:
    """Refuse a job's environment that is not a mapping of texts."""
    if not isinstance(env, dict) or not all(isinstance(x, str) for pair in env.items() for x in pair):
        raise wrong("env is not a mapping of names to texts; write {NAME: 'value'}", "env")


class ObjectServer(Section):
    """The server of s3:// places. Credentials are never in the file."""

    endpoint_url: Place | None = Field(
        default=None,
        description="address of an S3 server other than AWS",
        examples=["https://minio.example.org:9000"],
    )
    region: Text | None = Field(default=None, description="AWS region", examples=["eu-central-1"])
    profile: Text | None = Field(default=None, description="profile in ~/.aws/credentials, on every machine")

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/\s]+", url):
            raise ValueError("is not an address; write http:// or https:// and a host")
        return url

    def options(self) -> dict[str, Any]:
        """Keyword arguments for fsspec. Credentials come from the environment."""
        found: dict[str, Any] = {}
        if self.endpoint_url:
            found["endpoint_url"] = self.endpoint_url
        if self.profile:
            found["profile"] = self.profile
        if self.region:
            found["client_kwargs"] = {"region_name": self.region}
        return found


class Storage(ObjectServer):
    """The store's server."""

    block: Text | None = Field(
        default=None,
        description="Prefect block with AWS credentials, as type/name; default: the environment's credentials",
        examples=["aws-credentials/photon"],
    )
    single_writer: bool = Field(
        default=False,
        description="accept a server without create-only writes (If-None-Match): then only one process may commit "
        "rounds",
    )

    @field_validator("block")
    @classmethod
    def _is_block(cls, value: str | None) -> str | None:
        return value if value is None else _block(value)

    @model_validator(mode="after")
    def _one_source(self) -> "Storage":
        if self.profile and self.block:
            raise wrong("is given beside profile, but credentials come from one of them; drop the other", "block")
        return self

    @property
    def for_s3(self) -> list[str]:
        """Given keys that only an S3 store can use."""
        return [name for name in ("endpoint_url", "region", "profile", "block") if getattr(self, name)]

    def check(self, store: str) -> None:
        """Refuse keys that only an S3 store can use, for another store.

        Raises:
            PydanticCustomError: at the key.
        """
        for name in self.for_s3:
            if not is_s3(store):
                raise wrong(f"is for s3:// stores, but store is '{store}'; drop it", "storage", name)

    def store_options(self) -> dict[str, Any]:
        """Keyword arguments for a Store. The block's credentials go through the environment."""
        return self.options() | ({"single_writer": True} if self.single_writer else {})


class Notify(Section):
    """Notifications of each failed round and each excluded site."""

    block: Text = Field(
        description="Prefect notification or webhook block, as type/name; it keeps the address, which is a secret",
        examples=["slack-webhook/ops"],
    )

    @field_validator("block")
    @classmethod
    def _is_block(cls, value: str) -> str:
        return _block(value)


class Deploy(Section):
    """How the federation runs on a Prefect server (photon deploy)."""

    pool: Name | None = Field(
        default=None, description="work pool of the coordinator's flow runs; default: photon-<run>"
    )
    pool_type: PoolType = Field(default="process", description="type of the work pools")
    schedule: Text | None = Field(
        default=None,
        description="cron line that starts one round each time; default: rounds are started manually",
        examples=["'0 * * * *'"],
    )
    timezone: Text = Field(default="UTC", description="time zone of the schedule", examples=["Europe/Berlin"])
    heartbeat: Annotated[Seconds, Field(ge=HEARTBEAT_LEAST)] = Field(
        default=60.0, description="interval between two heartbeats of a flow run (s, or 1m)", examples=["60s"]
    )
    zombie_after: Seconds = Field(
        default=300.0,
        description="time without heartbeat after which a flow run counts as crashed (s, or 5m); more than "
        "heartbeat",
        examples=["5m"],
    )
    notify: Notify | None = Field(default=None, description="receiver of notifications; default: none are sent")

    @field_validator("schedule")
    @classmethod
    def _cron(cls, line: str | None) -> str | None:
        if line is not None and (problem := cron_problem(line)):
            raise ValueError(problem)
        return line

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # unknown, or no name at all
            raise ValueError("is not a time zone; write a name such as UTC or Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _silence(self) -> "Deploy":
        if self.zombie_after <= self.heartbeat:
            raise wrong(
                f"{self.zombie_after:g} s is not more than the heartbeat's {self.heartbeat:g} s: every flow run "
                f"would count as crashed; write at least {3 * self.heartbeat:g}",
                "zombie_after",
            )
        return self
