"""A federation without Prefect: real preparation, training in child processes, store, aggregation and commit."""

import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photon_core.run.run import Run
from photon_core.training import entry
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.view import view_of

if TYPE_CHECKING:
    from photon_core.jobs.launcher import Launcher


def source(work: Path, data: Path, domain: str, *, quick: bool) -> Path:
    """A domain's training texts; with `quick`, only the first few."""
    whole = data / domain / "train.jsonl.gz"
    if not quick:
        return whole
    part = work / f"{domain}.jsonl"
    if not part.exists():
        with gzip.open(whole, "rt", encoding="utf-8") as lines:
            part.write_text("".join(line for line, _ in zip(lines, range(200), strict=False)), "utf-8")
    return part


def federate(
    federation: Federation,
    launcher: "Launcher",
    work: Path,
    after: Callable[[Run, RoundManifest], None] = lambda _run, _manifest: None,
) -> Run:
    """Run all rounds, with every site in each. `after` is called with each committed round, in order."""
    from photon_core.aggregation.candidate import RoundLog
    from photon_core.aggregation.commit import commit
    from photon_core.aggregation.round import aggregate_round
    from photon_core.data.tokenizer import load_tokenizer
    from photon_core.run.opening import open_run
    from photon_core.run.run import run_of

    run = run_of(federation)

    def initial() -> Any:
        return launcher.run(partial(entry.make_initial, federation, work), label="initial")

    open_run(run, federation, load_tokenizer(federation.tokenizer).sha256, initial)
    names = [site.name for site in federation.sites]
    for t in range(1, federation.rounds.count + 1):
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda site, t=t: train_site(federation, run, launcher, site, t), names))
        candidate = aggregate_round(run, federation, t, names, {})
        after(run, commit(run, federation, candidate, RoundLog(names)))
    return run


def train_site(federation: Federation, run: Run, launcher: "Launcher", site: str, t: int) -> None:
    """Do a site's part of a round: fetch the model, train, upload."""
    from photon_core.run.updates import last_contribution
    from photon_core.training.job import LocalJob
    from photon_core.update.upload import upload_update

    base = run.round(t - 1)
    assert base is not None
    folder = view_of(federation, site).cache_dir / "model"
    model, moments = (
        [str(run.store.fetch(entry, run.files_dir(t - 1), folder)) for entry in entries]
        for entries in (base.download or base.model, base.moments)
    )
    job = LocalJob(
        view_of(federation, site),
        t,
        1,
        model,
        base.model_sha256,
        base.global_step,
        last_contribution(run, site, t),
        launcher.threads,
        moments,
    )
    log = folder.parent / "training.log"
    trained = launcher.run(partial(entry.train, job), label=f"{t}/{site}", log_path=log)
    upload_update(run, view_of(federation, site), t, trained)
