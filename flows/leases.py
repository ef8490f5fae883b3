"""A round continues after the Prefect server has lost the round's concurrency lease.

Every flow run of a deployment with a concurrency limit holds a lease. The server keeps leases in memory, and it
revokes one after 5 minutes without a renewal. A flow run whose renewal fails ends itself: one restart of the
server would end every round that lasts longer than 4 minutes. Here the limit only saves work: if two coordinators
do the same round, one commits it.
"""

from contextlib import AbstractContextManager
from uuid import UUID

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease


def outlive_leases() -> None:
    """Make a lost lease a warning in the flow run's log, for the rest of this process. Idempotent."""
    flow_engine.maintain_concurrency_lease = _maintain


def _maintain(
    lease_id: UUID, lease_duration: float, raise_on_lease_renewal_failure: bool = False
) -> AbstractContextManager[None]:
    del raise_on_lease_renewal_failure  # which Prefect's engine sets
    return maintain_concurrency_lease(lease_id, lease_duration, raise_on_lease_renewal_failure=False)
