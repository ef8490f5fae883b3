"""The upload of a site's trained update: shards first, then the manifest that commits it."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from photon_core.data.manifest import data_sha256
from photon_core.errors import PhotonError, StoreConflict
from photon_core.evidence.events import Fact, Kind
from photon_core.evidence.timeline import Stopwatch
from photon_core.formatting import printable
from photon_core.run.provenance import versions
from photon_core.run.run import Run, run_of
from photon_core.store.retry import Outage, outages
from photon_core.store.store import Store
from photon_core.tensors.shards import put_file
from photon_core.update.contribution import Contribution
from photon_core.update.settings import work_sha256
from schemas.bounds import LIST_LIMIT
from schemas.manifests import FileEntry, Span, UpdateManifest
from schemas.protocol import PROTOCOL
from schemas.view import SiteView

THREADS = 2


def upload_update(
    run: Run,
    view: SiteView,
    t: int,
    contribution: Contribution,
    spans: Sequence[Span] = (),
    checks: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
) -> UpdateManifest:
    """Commit a site's contribution to round t.

    The call is idempotent: shards have content-addressed names, and the manifest is created once. If another
    process of the site has committed this attempt, that update is kept and returned.

    Args:
        run, view, t: run, site and round of the work.
        contribution: result of the work.
        spans: phases of the site before this upload, for the round's timeline.
        checks: results of the data checks before training.
        notes: sentences for the operator.

    Raises:
        PhotonError: the round's base model is missing, or is not the model that training started from.
    """
    base = run.round(t - 1)
    if base is None or base.model_sha256 != contribution.base_sha256:
        wrong = f"trained from a model that is not the committed one of round {t - 1}"
        raise PhotonError(f"round {t}, site '{view.name}': {wrong}")
    stopwatch = Stopwatch()
    with outages() as met:
        files, moments, key_layers = _put_files(run, view, t, contribution)
    manifest = UpdateManifest(
        run=view.federation.run,
        round=t,
        site=view.name,
        attempt=contribution.attempt,
        base_sha256=contribution.base_sha256,
        base_dtype="BF16" if base.download else "F32",
        codec=contribution.codec,
        clip_norm=view.update.clip_norm,
        noise_multiplier=view.update.noise_multiplier,
        files=files,
        moments=moments,
        key_layers=key_layers,
        entry_sha256=contribution.entry_sha256,
        entry=dict(contribution.entry),
        tokens=contribution.tokens,
        steps=contribution.steps,
        metrics=contribution.metrics,
        data_sha256=data_sha256(view),
        notes=[printable(note) for note in (*notes, *_outages(met))][:LIST_LIMIT],
        spans=[*spans, Span(phase="upload", start=stopwatch.unix, seconds=stopwatch.elapsed())],
        checks=list(checks),
        versions=versions(),
        previous_sha256=run.round_sha256(t - 1),
        work=work_sha256(view.federation),
        protocol=PROTOCOL,
    )
    return _committed(run, manifest)


def _put_files(run: Run, view: SiteView, t: int, contribution: Contribution) -> list[list[FileEntry]]:
    """Shards of the change, of the moments and of the key layers, as they lie in the store."""
    place, folder = Path(contribution.folder), run.site_dir(t, view.name, contribution.attempt)
    return [
        [put_file(run.store, place / entry.path, folder, entry=entry) for entry in entries]
        for entries in (contribution.files, contribution.moments, contribution.key_layers)
    ]


def _committed(run: Run, manifest: UpdateManifest) -> UpdateManifest:
    """The committed update of this attempt: this one, or another process's."""
    try:
        run.commit_update(manifest)
    except StoreConflict:
        committed = run.update(manifest.round, manifest.site, manifest.attempt)
        if committed is None:
            raise
        return committed
    return manifest


def _outages(met: list[Outage]) -> list[str]:
    """One sentence about the outages; empty if there were none."""
    if not met:
        return []
    causes = sorted({outage.cause for outage in met})
    tries, seconds = sum(outage.tries for outage in met), sum(outage.seconds for outage in met)
    return [str(Fact(Kind.STORE_AWAY, {"seconds": seconds, "tries": tries, "causes": causes}))]


class EarlyUpload:
    """Uploads shards as soon as they are finished. The upload itself then finds them by their content.

    No failure here is an error. After the first one, the remaining shards are left to the upload itself, which
    retries. Shards of a training that was killed and restarted stay behind as orphans, which no manifest names.

    Args:
        view, t, attempt: site, round and attempt of the shards.
    """

    def __init__(self, view: SiteView, t: int, attempt: int) -> None:
        run = run_of(view.federation)
        self._store = Store(run.store.url, **view.federation.storage.store_options(), retry_seconds=0.0)
        self._folder = run.site_dir(t, view.name, attempt)
        self._pool = ThreadPoolExecutor(THREADS, "early-upload")
        self._under_way: list[Future[None]] = []
        self._failed = False

    def put(self, path: Path) -> None:
        """Upload a finished file in the background."""
        self._under_way.append(self._pool.submit(self._put, path))

    def wait(self) -> None:
        """Wait until every file is uploaded, or one upload has failed."""
        for future in self._under_way:
            future.exception()

    def _put(self, path: Path) -> None:
        try:
            if not self._failed:
                put_file(self._store, path, self._folder)
        except Exception:  # the upload itself meets the same error, and raises it
            self._failed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)  # no thread reads a file while the next training writes its own
