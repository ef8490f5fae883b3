"""A round goes on when the Prefect server no longer knows that the round is the only one.

Of a deployment with a concurrency limit, every flow run holds a lease, which the server keeps in memory and takes
back after 5 minutes without a renewal. A flow run whose renewal fails ends itself: one restart of the server would
end every round that lasts longer than 4 minutes. The limit only saves work here. Of two coordinators that make the
same round, one commits.
"""

from contextlib import AbstractContextManager
from uuid import UUID

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease


def outlive_leases() -> None:
    """From now on a lost lease is a warning in the flow run's log, in this process. Safe to repeat."""
    flow_engine.maintain_concurrency_lease = _maintain


def _maintain(
    lease_id: UUID, lease_duration: float, raise_on_lease_renewal_failure: bool = False
) -> AbstractContextManager[None]:
    return maintain_concurrency_lease(lease_id, lease_duration, raise_on_lease_renewal_failure=False)
