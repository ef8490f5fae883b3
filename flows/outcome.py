"""How the tasks of a site ended."""

from collections.abc import Mapping

from prefect.futures import PrefectFuture

from photon_core.errors import printable


def failure(futures: Mapping[str, PrefectFuture]) -> str:
    """Wait for a site's steps, in order; why the first failed one failed, or an empty text."""
    for name, future in futures.items():
        future.wait()
        if not future.state.is_completed():
            return printable(f"{name}: {' '.join(str(future.state.message).split())}")
    return ""
