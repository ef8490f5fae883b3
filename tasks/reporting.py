"""Reports of rounds, made beside the next round's training; a failure costs the report and nothing else."""

import atexit
import base64
import contextvars
import functools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from photon_core.formatting import printable
from photon_core.run.line import sentence
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.server_errors import told

SECONDS = 300.0  # for one report; it is made with what the training leaves of the cores
LAST_SECONDS = 120.0  # that the end of a run waits for the newest

_changed = threading.Condition()
_next: Callable[[], None] | None = None
_working = False


def report(federation: Federation, manifest: RoundManifest) -> None:
    """Have the report of a committed round made, and return at once.

    One is made at a time. A round whose turn has not come when the next is committed gets none: the next one's
    shows it, too.
    """
    global _next, _working
    every = federation.rounds.report_every
    if every is None or (manifest.round % every and manifest.place < federation.rounds.count):
        return
    context = contextvars.copy_context()  # the artifact belongs to the round's flow run
    with _changed:
        _next = lambda: context.run(_report, federation, manifest)  # noqa: E731
        if not _working:
            _working = True
            threading.Thread(target=_work, daemon=True, name="photon-report").start()


def finish(timeout: float = LAST_SECONDS) -> None:
    """Wait until the newest report is there, or has failed."""
    with _changed:
        _changed.wait_for(lambda: not _working, timeout)


def _work() -> None:
    global _next, _working
    while True:
        with _changed:
            job, _next = _next, None
            if job is None:
                _working = False
                _changed.notify_all()
                return
        job()


def _report(federation: Federation, manifest: RoundManifest) -> None:
    began = time.monotonic()
    try:
        made = _make(federation, manifest.round)
        create_markdown_artifact(
            markdown=_markdown(manifest, made),
            key=re.sub(r"[^a-z0-9-]+", "-", f"photon-{federation.run}-report".lower()),
            description=f"Run `{federation.run}`, round {manifest.round}: {made['location']}",
        )
        get_run_logger().info("report: %s (%.1f s)", made["location"], time.monotonic() - began)
    except Exception as error:  # of matplotlib, the store, the server, each with kinds of its own
        get_run_logger().warning(
            "round %d is committed; its report could not be made: %s", manifest.round, told(error)
        )


def _make(federation: Federation, t: int) -> dict[str, Any]:
    options, count = federation.storage.store_options(), federation.rounds.count
    asked = {"store": federation.store, "options": options, "run": federation.run, "t": t, "count": count}
    asked["cache"] = _cache()
    command = [sys.executable, "-m", "photon_core.report.write"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(printable(done.stderr.strip()[-500:]))
    made: dict[str, Any] = json.loads(done.stdout)
    return made


@functools.cache
def _cache() -> str:
    """A folder for the manifests that this process's reports have read, so that each reads only what is new."""
    folder = tempfile.TemporaryDirectory(prefix="photon-report-")
    atexit.register(folder.cleanup)
    return folder.name


def _markdown(manifest: RoundManifest, made: dict[str, Any]) -> str:
    """What the Prefect UI shows: the key numbers, the key picture, where the whole page is."""
    summary = (
        _plain(sentence(manifest))
        if manifest.kind != "train"
        else f"{len(manifest.updates)} of {len(manifest.sampled)} sites"
    )
    if "perplexity" in manifest.metrics:
        summary = f"Perplexity **{manifest.metrics['perplexity']:.2f}** on held-out text, {summary}"
    lines = [f"# {manifest.run}, round {manifest.round}", "", f"{summary}."]
    if made["picture"]:
        data = base64.b64encode(made["picture"].encode()).decode()
        lines += ["", f"![perplexity by round, and who did what when](data:image/svg+xml;base64,{data})"]
    link = made["location"] if "://" in made["location"] else f"file://{made['location']}"
    lines += ["", f"The whole report: [{made['location']}]({link})"]
    lines += [f"\n`{site}` was left out: {_plain(why)}" for site, why in sorted(manifest.left_out.items())]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A stranger's text without Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]()<>#!|~])", r"\\\1", printable(text, 300))
