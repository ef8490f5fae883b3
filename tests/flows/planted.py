"""Secrets that a test plants, and every place of a deployed federation that they must not come to."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.conftest import prepare_file, write_file
from tests.flows.deployment import COORDINATOR, Deployed, Server
from tests.s3_server import SECRETS

PROFILE = {"aws_access_key_id": "AKIAPROFILEOFASITE0A", "aws_secret_access_key": "profile+secret/of/a/site+0Q"}
BLOCK = {"aws_access_key_id": "AKIABLOCKOFTHESTORE0", "aws_secret_access_key": "block/secret+of/the+store/1R"}
TRACKER = {"PLANTED_WANDB_API_KEY": "planted-tracker-key-7f3a9c"}
HOOK = "https://hooks.slack.com/services/T0PLANTED/B0PLANTED/planted-hook-2b8e"
HOSTILE = ("AKIAHOSTILESERVER00Z", "hostile secret: text+of/a-server")
PLANTED = (*SECRETS.values(), *PROFILE.values(), *BLOCK.values(), *TRACKER.values(), HOOK, *HOSTILE)


def plant_in_environment(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A profile `lab` and a key, where workers and their jobs find them. The S3 server's already exist."""
    profile = folder / "credentials"
    profile.write_text("[lab]\n" + "".join(f"{key} = {value}\n" for key, value in PROFILE.items()))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    for name, value in TRACKER.items():
        patch.setenv(name, value)


def deploy_with_secrets(server: Server, folder: Path, bucket: str, endpoint: str) -> Deployed:
    """Two sites: the store's credentials come from a block, a site's shards by a profile, a hook from a block."""
    from prefect.blocks.notifications import SlackWebhook
    from prefect.blocks.system import Secret

    from flows.deploy.apply import apply
    from flows.deploy.catalogue import plan

    rounds = {"count": 1, "quorum": 1, "grace": 1, "report_every": 1, "evaluation_deadline": 60}
    deploy = {"pool": COORDINATOR, "heartbeat": 30, "zombie_after": 120, "notify": {"block": "slack-webhook/ops"}}
    storage = {"endpoint_url": endpoint, "block": "secret/store"}
    sections: dict[str, Any] = {
        "store": f"s3://{bucket}/x",
        "rounds": rounds,
        "deploy": deploy,
        "storage": storage,
    }
    file = write_file(folder, ("a", "b"), {"a": "near", "b": "far"}, run="planted", **sections)
    data = yaml.safe_load(file.read_text())
    data["sites"][0] |= {
        "shards": f"s3://{bucket}/private/a",
        "storage": {"endpoint_url": endpoint, "profile": "lab"},
    }
    data["sites"][1]["job_variables"] = {"env": {"A_TOKEN": "{{ prefect.blocks.secret.tracker }}"}}
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    with server.client():
        Secret(value=BLOCK).save("store")
        Secret(value=next(iter(TRACKER.values()))).save("tracker")
        SlackWebhook(url=HOOK).save("ops")
        federation = prepare_file(file)
        apply(plan(federation))
    return Deployed(server, federation)


def kept(deployed: Deployed, home: Path, folder: Path, bucket: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of all that the store, the Prefect server, the workers and the sites have kept."""
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=deployed.federation.storage.endpoint_url, use_listings_cache=False)
    for name in fs.find(bucket):
        yield f"s3://{name}", fs.cat_file(name)
    for root in (home, folder):
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()


def forms(secret: str) -> set[bytes]:
    """A secret as it may stand in a file: raw, percent-encoded, in JSON, hex, base64 at any place of a text."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), secret.replace("/", "\\/").encode(), raw.hex().encode()}
    found.add(raw.hex().upper().encode())
    for shift in range(3):
        whole = base64.b64encode(os.urandom(shift) + raw)
        first = 4 * (shift > 0)  # what follows depends on the secret alone, but for the last group
        found |= {whole[first:-4], base64.urlsafe_b64encode(b"\0" * shift + raw)[first:-4]}
    return found


def found_in(name: str, data: bytes) -> list[str]:
    """Which secrets a file's bytes hold."""
    return [f"{secret[:12]}... in {name}" for secret in PLANTED if any(form in data for form in forms(secret))]
