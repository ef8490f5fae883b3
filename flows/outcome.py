"""How the tasks of a site ended."""

from collections.abc import Mapping

from prefect.futures import PrefectFuture


def failure(futures: Mapping[str, PrefectFuture]) -> str:
    """Wait for a site's steps, in order; why the first failed one failed, or an empty text."""
    for name, future in futures.items():
        future.wait()
        if not future.state.is_completed():
            return f"{name}: {future.state.message}"
    return ""
