"""A site's shards on their way into the store while the next ones are still being encoded."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from photon_core.run.opening import run_of
from photon_core.run.run import Run
from photon_core.store.store import Store
from photon_core.tensors.shards import put_file
from schemas.federation import Federation

THREADS = 2


class EarlyUpload:
    """Puts finished shards where the upload will look for them: it then finds them there, by their content.

    Nothing here is an error. At the first failure the rest is left to the upload itself, which is patient; what
    the upload does not want, because training was killed and began again, is litter that no manifest names.

    Args:
        federation, site, t, attempt: whose shards.
    """

    def __init__(self, federation: Federation, site: str, t: int, attempt: int) -> None:
        run = run_of(federation)
        self._store = Store(run.store.url, **federation.storage.store_options(), patience=0.0)
        self._folder = Run(self._store, run.run).site_dir(t, site, attempt)
        self._pool = ThreadPoolExecutor(THREADS, "early-upload")
        self._under_way: list[Future[None]] = []
        self._failed = False

    def put(self, path: Path) -> None:
        """Upload a finished file, behind the caller's back."""
        self._under_way.append(self._pool.submit(self._put, path))

    def wait(self) -> None:
        """Until everything is there, or something has failed."""
        for future in self._under_way:
            future.exception()

    def _put(self, path: Path) -> None:
        try:
            if not self._failed:
                put_file(self._store, path, self._folder)
        except Exception:  # whatever it was, the upload meets it again and tells it
            self._failed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)  # no file is read any more when the next training writes its own
