"""A site's trained update on its way into the store: shards first, then the manifest that commits it."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from photon_core.data.manifest import data_sha256
from photon_core.errors import PhotonError, StoreConflict
from photon_core.evidence.events import Fact, Kind
from photon_core.evidence.timeline import Begin
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
) -> UpdateManifest:
    """Commit a site's contribution to round t.

    Args:
        run, view, t: whose work.
        contribution: the work.
        spans: what the site did before this upload, and when, for the round's timeline.
        checks: what its data met before training.

    Safe to repeat: shards have content-addressed names, and the manifest is created once. If another process
    of the site has committed this attempt, its update stands and is returned.

    Raises:
        PhotonError: the round's base model is gone, or not the one that was trained from.
    """
    base = run.round(t - 1)
    if base is None or base.model_sha256 != contribution.base_sha256:
        raise PhotonError(
            f"round {t}, site '{view.name}': trained from a model that is not the committed one of round {t - 1}"
        )
    begin = Begin()
    with outages() as found:
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
        notes=[printable(note) for note in (*contribution.notes, *_outages(found))][:LIST_LIMIT],
        spans=[*spans, Span(phase="upload", start=begin.unix, seconds=begin.elapsed())],
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
    """The update of this attempt: this one, or what another process has committed."""
    try:
        run.commit_update(manifest)
    except StoreConflict:
        committed = run.update(manifest.round, manifest.site, manifest.attempt)
        if committed is None:
            raise
        return committed
    return manifest


def _outages(found: list[Outage]) -> list[str]:
    """One sentence about them, or none."""
    if not found:
        return []
    causes = sorted({outage.cause for outage in found})
    tries, seconds = sum(outage.tries for outage in found), sum(outage.seconds for outage in found)
    return [str(Fact(Kind.STORE_AWAY, {"seconds": seconds, "tries": tries, "causes": causes}))]


class EarlyUpload:
    """Puts finished shards where the upload will look for them: it then finds them there, by their content.

    Nothing here is an error. At the first failure the rest is left to the upload itself, which is patient; what
    the upload does not want, because training was killed and began again, is litter that no manifest names.

    Args:
        view, t, attempt: whose shards.
    """

    def __init__(self, view: SiteView, t: int, attempt: int) -> None:
        run = run_of(view.federation)
        self._store = Store(run.store.url, **view.federation.storage.store_options(), patience=0.0)
        self._folder = run.site_dir(t, view.name, attempt)
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
