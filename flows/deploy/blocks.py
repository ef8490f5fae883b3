"""Prefect blocks of a federation: the store's credentials, and the block for notifications."""

from typing import TYPE_CHECKING, Any

from flows.deploy.catalogue import CREDENTIALS, VALUE_BLOCKS
from photon_core.errors import FederationError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from flows.deploy.catalogue import Plan

WEBHOOK = "webhook"
# Jinja filters: untrusted text mentions nobody, links nowhere, and is truncated (photon_core.errors.unmarked)
UNMARKED = " | replace('<', '‹') | replace('>', '›') | replace('](', '] (') | truncate(1000, true, '…', 0)"


def find_block(client: "SyncPrefectClient", block: str, secrets: bool = False) -> Any:
    """The document of a block; None if there is none.

    Args:
        client: client of the Prefect server.
        block: name of the block, as type/name.
        secrets: flag: reveal its secret values.
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
        FederationError: there is no such block, or it contains no credentials.
    """
    there = find_block(client, block, secrets=True)
    if there is None:
        raise FederationError(
            f"storage.block: the Prefect server has no block '{block}'; create it with the keys "
            + " and ".join(CREDENTIALS.values())
        )
    data = there.data.get("value") if block.split("/")[0] in VALUE_BLOCKS else there.data
    missing = [key for key in CREDENTIALS.values() if not (isinstance(data, dict) and data.get(key))]
    if missing:
        raise FederationError(
            f"storage.block: the block '{block}' contains no {' and no '.join(missing)}; add them to it"
        )
    return {variable: str(data[key]) for variable, key in CREDENTIALS.items()}


class Notifier:
    """Actions that send notifications through the block that the file names."""

    def __init__(self, client: "SyncPrefectClient", plan: "Plan") -> None:
        self.client, self.plan = client, plan

    def action(self, message: str) -> dict[str, Any]:
        """The automation's action.

        Args:
            message: Jinja expression for the text.

        Raises:
            FederationError: there is no such block.
        """
        notify = self.plan.notify
        assert notify is not None
        there = find_block(self.client, notify.block)
        if there is None:
            raise FederationError(
                f"deploy.notify.block: the Prefect server has no block '{notify.block}'; create it with the "
                "address of the notifications"
            )
        message = f"({message}){UNMARKED}"
        if notify.block.startswith(f"{WEBHOOK}/"):
            payload = '{"text": {{ ' + message + " | tojson }} }"
            return {"type": "call-webhook", "block_document_id": str(there.id), "payload": payload}
        return {
            "type": "send-notification",
            "block_document_id": str(there.id),
            "subject": f"Photon: {self.plan.run}",
            "body": "{{ " + message + " }}",
        }
