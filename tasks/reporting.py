"""Reports of rounds, written while the next round trains. A failure loses the report and nothing else.

Prefect is imported only when a report is ready: the command line has a runtime before Prefect knows its server.
"""

import base64
import contextvars
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from photon_core.evidence.metrics import show
from photon_core.formatting import printable
from photon_core.run.line import sentence
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.server_errors import told

SECONDS = 300.0  # timeout of one report, which shares the cores with training
LAST_SECONDS = 120.0  # longest wait for the newest report at the end of a run


class Reports:
    """The reports of a process, written one at a time in a separate thread. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next: Callable[[], None] | None = None
        self._working = False
        self._cache: tempfile.TemporaryDirectory[str] | None = None

    def make(self, federation: Federation, manifest: RoundManifest) -> None:
        """Schedule the report of a committed round and return at once.

        A round that still waits when the next one is committed gets no report: the next report shows it, too.
        """
        every = federation.rounds.report_every
        if every is None or (manifest.round % every and manifest.place < federation.total_rounds):
            return
        context = contextvars.copy_context()  # so that the artifact belongs to the round's flow run
        with self._changed:
            self._next = lambda: context.run(self._report, federation, manifest)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, daemon=True, name="photon-report").start()

    def finish(self, timeout: float = LAST_SECONDS) -> None:
        """Wait until the newest report is written, or has failed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._working, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                job, self._next = self._next, None
                if job is None:
                    self._working = False
                    self._changed.notify_all()
                    return
            job()

    def _report(self, federation: Federation, manifest: RoundManifest) -> None:
        from prefect import get_run_logger
        from prefect.artifacts import create_markdown_artifact

        began = time.monotonic()
        try:
            made = _make(federation, manifest.round, self._folder())
            create_markdown_artifact(
                markdown=_markdown(manifest, made),
                key=re.sub(r"[^a-z0-9-]+", "-", f"photon-{federation.run}-report".lower()),
                description=f"Run `{federation.run}`, round {manifest.round}: {made['location']}",
            )
            get_run_logger().info("report: %s (%.1f s)", made["location"], time.monotonic() - began)
        except Exception as error:  # matplotlib, the store and the server each raise their own errors
            get_run_logger().warning(
                "round %d is committed; its report could not be written: %s", manifest.round, told(error)
            )

    def _folder(self) -> str:
        """Cache folder of the manifests that reports have read, so that each report reads only new ones."""
        if self._cache is None:
            self._cache = tempfile.TemporaryDirectory(prefix="photon-report-", ignore_cleanup_errors=True)
        return self._cache.name

    def close(self) -> None:
        """Remove the cache."""
        cache = self._cache
        if cache is not None:
            cache.cleanup()


def _make(federation: Federation, t: int, cache: str) -> dict[str, Any]:
    options, count = federation.storage.store_options(), federation.rounds.count
    asked = {"store": federation.store, "options": options, "run": federation.run, "t": t, "count": count}
    asked["cache"] = cache
    command = [sys.executable, "-m", "photon_core.report.write"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(printable(done.stderr.strip()[-500:]))
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def _markdown(manifest: RoundManifest, made: dict[str, Any]) -> str:
    """Text for the Prefect UI: main numbers, main picture, link to the whole page."""
    summary = (
        _plain(sentence(manifest))
        if manifest.kind != "train"
        else f"{len(manifest.updates)} of {len(manifest.sampled)} sites"
    )
    if "perplexity" in manifest.metrics:
        reached = show("perplexity", manifest.metrics["perplexity"])
        summary = f"Perplexity **{reached}** on held-out text, {summary}"
    lines = [f"# {manifest.run}, round {manifest.round}", "", f"{summary}."]
    if made["picture"]:
        data = base64.b64encode(made["picture"].encode()).decode()
        lines += ["", f"![perplexity by round, and who did what when](data:image/svg+xml;base64,{data})"]
    link = made["location"] if "://" in made["location"] else f"file://{made['location']}"
    lines += ["", f"The whole report: [{made['location']}]({link})"]
    lines += [f"\n`{site}` was excluded: {_plain(why)}" for site, why in sorted(manifest.left_out.items())]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """An untrusted text without Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]()<>#!|~])", r"\\\1", printable(text, 300))
