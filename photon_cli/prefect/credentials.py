"""The store's credentials from the Prefect block that the file names (storage.block), for every command.

They go into this process's environment, where S3 clients and child processes find them. They go nowhere else: not
into the file, arguments, logs or a server's parameters. A separate process reads the block, because `photon run`
may import Prefect only after its embedded server is set up.
"""

import json
import os
import subprocess
import sys

from photon_core.errors import FederationError, PhotonError
from schemas.federation import Federation

SECONDS = 120.0  # timeout for the server's answer
WRONG, NOT_READY = 2, 1  # exit codes of the separate process


def take_credentials(federation: Federation) -> None:
    """Put the block's credentials into the environment. Does nothing if the file names no block.

    Raises:
        FederationError: there is no such block, or it contains no credentials.
        PhotonError: the server of PREFECT_API_URL does not answer or denies access.
    """
    block = federation.storage.block
    if block is None:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-m", "photon_cli.prefect.credentials", block],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PhotonError(
            f"storage.block: the Prefect server did not answer within {SECONDS:.0f} s; look at its log"
        ) from None
    if done.returncode:
        error = FederationError if done.returncode == WRONG else PhotonError
        raise error("storage.block: " + done.stderr.strip().removeprefix("storage.block: "))
    os.environ.update(json.loads(done.stdout))


def main() -> None:
    """Print the block's credentials as JSON on standard output, which only the caller above reads."""
    from prefect.client.orchestration import get_client

    from flows.deploy.blocks import credentials
    from photon_cli.prefect.remote import require_server

    try:
        require_server()
        with get_client(sync_client=True) as client:
            print(json.dumps(credentials(client, sys.argv[1])))
    except PhotonError as error:
        print(error, file=sys.stderr)
        sys.exit(WRONG if isinstance(error, FederationError) else NOT_READY)


if __name__ == "__main__":
    main()
