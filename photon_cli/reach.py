"""A store that is elsewhere is asked once before any work: nobody waits two minutes for a wrong address."""

from photon_core.errors import StoreUnavailable
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.run import Run, run_of
from photon_core.store.store import Store
from schemas.federation import Federation

SECONDS = 15.0  # for an answer; what goes on under way is more patient


def reachable(federation: Federation) -> Run:
    """The federation's run, in a store that has answered.

    Raises:
        StoreUnavailable: it does not answer.
        StoreRefused: it does not let us in.
        FederationError: its URL is of no kind that there is.
    """
    run = run_of(federation)
    if not run.store.is_local:
        try:
            store = Store(federation.store, **federation.storage.store_options(), patience=SECONDS)
            store.exists(Place(PlaceKind.RUN_JSON, run.run).path)
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"{error}; if it was never there, correct store and storage.endpoint_url"
            ) from None
    return run
