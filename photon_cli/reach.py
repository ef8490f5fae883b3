"""A remote store is checked before any work, with a short timeout, so that a wrong address is reported soon."""

from photon_core.errors import StoreUnavailable
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import Run, run_of
from photon_core.store.store import Store
from schemas.federation import Federation

SECONDS = 15.0  # timeout of this check; calls during a run retry for longer


def reachable(federation: Federation) -> Run:
    """The federation's run, in a store that has answered.

    Raises:
        StoreUnavailable: the store does not answer.
        StoreRefused: the store denies access.
        FederationError: the store's URL has an unknown scheme.
    """
    run = run_of(federation)
    if not run.store.is_local:
        try:
            store = Store(federation.store, **federation.storage.store_options(), retry_seconds=SECONDS)
            store.exists(Place(PlaceKind.RUN_JSON, run.run).path)
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"{error}. If the address is wrong, correct store and storage.endpoint_url"
            ) from None
    return run
