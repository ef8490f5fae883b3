"""Prefect blocks that a federation uses: the one that notifications go through."""

from typing import TYPE_CHECKING, Any

from flows.catalogue import CREDENTIALS, VALUE_BLOCKS
from photon_core.errors import FederationError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from flows.catalogue import Plan

WEBHOOK = "webhook"
# Jinja filters: a stranger's words mention nobody, link nowhere, and end (photon_core.errors.unmarked)
UNMARKED = " | replace('<', '‹') | replace('>', '›') | replace('](', '] (') | truncate(1000, true, '…', 0)"


def webhook_block(run: str) -> str:
    """Name of the run's own webhook block: lower case, since blocks' names are."""
    import re

    from photon_core.hashing import sha256_bytes

    return f"photon-{re.sub('[^a-z0-9]+', '-', run.lower())}-{sha256_bytes(run.encode())[:6]}"


def find_block(client: "SyncPrefectClient", block: str, secrets: bool = False) -> Any:
    """The document of a block named as type/name; None if there is none.

    Args:
        secrets: with its secret values in the clear.
    """
    from prefect.exceptions import ObjectNotFound

    kind, name = block.split("/")
    try:
        return client.read_block_document_by_name(name, kind, include_secrets=secrets)
    except ObjectNotFound:
        return None


def credentials(client: "SyncPrefectClient", block: str) -> dict[str, str]:
    """The store's credentials as environment variables.

    Raises:
        FederationError: there is no such block, or it holds no such credentials.
    """
    there = find_block(client, block, secrets=True)
    if there is None:
        raise FederationError(
            f"storage.block: the server has no block '{block}'; create it, with "
            + " and ".join(CREDENTIALS.values())
        )
    data = there.data.get("value") if block.split("/")[0] in VALUE_BLOCKS else there.data
    missing = [key for key in CREDENTIALS.values() if not (isinstance(data, dict) and data.get(key))]
    if missing:
        raise FederationError(
            f"storage.block: the block '{block}' holds no {' and no '.join(missing)}; write them"
        )
    return {variable: str(data[key]) for variable, key in CREDENTIALS.items()}


def save_webhook(client: "SyncPrefectClient", run: str, url: str, dry_run: bool) -> str:
    """Have the run's webhook block call the URL. Returns created, updated or unchanged."""
    from prefect.blocks.webhook import Webhook

    there = find_block(client, f"{WEBHOOK}/{webhook_block(run)}", secrets=True)
    if there is not None and there.data.get("url") == url:
        return "unchanged"
    if not dry_run:
        block = Webhook(url=url, headers={"Content-Type": "application/json"})
        block.save(webhook_block(run), overwrite=True)
    return "created" if there is None else "updated"


def forget_webhook(client: "SyncPrefectClient", run: str, dry_run: bool) -> str:
    """Remove the run's webhook block. Returns removed, or nothing where there is none."""
    there = find_block(client, f"{WEBHOOK}/{webhook_block(run)}")
    if there is None:
        return ""
    if not dry_run:
        client.delete_block_document(there.id)
    return "removed"


class Notifier:
    """Actions that tell somebody, through the block that the file names or the run's webhook."""

    def __init__(self, client: "SyncPrefectClient", plan: "Plan", dry_run: bool) -> None:
        self.client, self.plan, self.dry_run = client, plan, dry_run

    def action(self, message: str) -> dict[str, Any]:
        """The automation's action.

        Args:
            message: a Jinja expression for the text.

        Raises:
            FederationError: there is no such block.
        """
        notify = self.plan.notify
        assert notify is not None
        block = notify.block or f"{WEBHOOK}/{webhook_block(self.plan.run)}"
        there = find_block(self.client, block)
        if there is None and not (self.dry_run and notify.webhook):
            raise FederationError(
                f"deploy.notify.block: the server has no block '{block}'; create it, or write webhook: https://..."
            )
        block_id = str(there.id) if there else "00000000-0000-0000-0000-000000000000"
        message = f"({message}){UNMARKED}"
        if block.startswith(f"{WEBHOOK}/"):
            payload = '{"text": {{ ' + message + " | tojson }} }"
            return {"type": "call-webhook", "block_document_id": block_id, "payload": payload}
        return {
            "type": "send-notification",
            "block_document_id": block_id,
            "subject": f"Photon: {self.plan.run}",
            "body": "{{ " + message + " }}",
        }
