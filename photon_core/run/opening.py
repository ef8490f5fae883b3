"""What a round is, whoever carries it out: where it starts, who has contributed, how it is committed."""

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from photon_core.data.paths import find_site
from photon_core.errors import (
    CorruptFile,
    FederationError,
    PhotonError,
    StoreConflict,
)
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.birth import check_recipe
from photon_core.run.line import contributions, place_of, sentence
from photon_core.run.run import Run, model_sha256, versions
from photon_core.run.sampling import sampled_sites
from photon_core.run.start import Initial, check_start
from photon_core.store.store import Store
from photon_core.tensors.container import header_length
from photon_core.tensors.numerics import dots
from photon_core.tensors.shards import put_file
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, RunManifest, UpdateManifest
from schemas.sections.start import Start
from schemas.sections.values import NAME

SCORES = {"loss", "perplexity", "tokens"}
SCORE = re.compile(rf"loss|perplexity|tokens|(?:loss|tokens)/{NAME.pattern}")
EVALUATION_LIMIT = 65_536  # bytes
READERS = 16  # manifests read at the same time: a store far away answers each in some 50 ms
SCORE_LIMIT = 1e15  # of loss and tokens; beyond it a mean over the sites might not be finite
FROZEN = ("model", "tokenizer", "seed", "start")  # what makes two rounds parts of one run


def run_of(federation: Federation) -> Run:
    """The federation's run in its store."""
    return Run(Store(federation.store, **federation.storage.store_options()), federation.run)


def federation_sha256(federation: Federation) -> str:
    return sha256_bytes(canonical_json(federation.model_dump(mode="json")))


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def precise_now() -> str:
    """The same to the microsecond: no two commits have it in common."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def check_frozen(birth: RunManifest, federation: Federation, tokenizer_sha256: str) -> None:
    """Refuse a federation file that is not the same run's any more.

    Raises:
        FederationError: naming the key, both values and the remedy.
    """
    now = federation.model_dump(mode="json")
    remedy = f"restore it, or give the changed federation a new name under run: (this run is '{birth.run}')"
    for key in FROZEN:
        then = birth.federation.get(key, Start().model_dump(mode="json"))  # older runs have no start
        if key != "tokenizer" and now[key] != then:
            where, mine, started = _first_difference(key, now[key], then)
            raise FederationError(f"{where} is {mine}, but the run was started with {started}: {remedy}")
    if birth.tokenizer_sha256 != tokenizer_sha256:
        raise FederationError(
            f"tokenizer '{federation.tokenizer}' is not the one that the run was started with: {remedy}"
        )


def _first_difference(key: str, mine: Any, theirs: Any) -> tuple[str, Any, Any]:
    """The key at which two values of a federation file differ, and both values there."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        below = next((k for k in mine if mine[k] != theirs.get(k)), None)
        if below is not None:
            return _first_difference(f"{key}.{below}", mine[below], theirs.get(below))
    return key, mine, theirs


def open_run(
    run: Run, federation: Federation, tokenizer_sha256: str, initial_model: Callable[[], Initial]
) -> RunManifest:
    """Create run.json and round 0 (the initial model) where they are missing; check that they are this run's.

    Safe to call from many processes at once: the store's commit lets one of them win.

    Raises:
        FederationError: the model to start from is not the file's; nothing was created.
    """
    birth = run.birth()
    if birth is None:
        check_start(federation)
        try:
            run.create_birth(
                RunManifest(
                    run=federation.run,
                    created=utc_now(),
                    federation=federation.model_dump(mode="json"),
                    federation_sha256=federation_sha256(federation),
                    tokenizer_sha256=tokenizer_sha256,
                    versions=versions(),
                )
            )
        except StoreConflict:
            pass  # another coordinator was first; the check below says whether it means the same run
        birth = run.birth()
        assert birth is not None
    check_frozen(birth, federation, tokenizer_sha256)
    check_recipe(birth, federation)
    if run.round(0) is None:
        initial = initial_model()
        files = put_files(run, f"{run.round_dir(0)}/model", initial.files, prefix="model/")
        manifest = RoundManifest(
            run=federation.run,
            round=0,
            model_sha256=model_sha256(files),
            model=files,
            metrics={"model_norm": _norm(initial.files)},
            start=initial.start,
            federation_sha256=federation_sha256(federation),
            created=utc_now(),
            versions=versions(),
        )
        try:
            run.commit_round(manifest)
        except StoreConflict:
            pass  # the other's theta^0 has the same origin, and stands
    return birth


def _norm(paths: Iterable[Path]) -> float:
    """Euclidean norm of the model in these files of float32 tensors: the guard's first running value."""
    squares = 0.0
    for path in paths:
        with path.open("rb") as file:
            header = header_length(file.read(8), path.stat().st_size, str(path))
        values = np.asarray(np.memmap(path, "<f4", "r", 8 + header))
        squares += float(dots(values[None], values[None])[0])
    return sqrt(squares)


def put_files(run: Run, folder: str, paths: Iterable[Path], prefix: str = "") -> list[FileEntry]:
    """Upload local safetensors files under content-addressed names, so that no two writers ever share one."""
    return [put_file(run.store, path, folder, prefix) for path in paths]


def last_contribution(run: Run, site: str, t: int) -> tuple[int, int] | None:
    """(round, attempt) of the site's newest aggregated update before round t: where its stream continues.

    Of the rounds that round t - 1's model comes from: what a rollback has left behind is not gone on from.
    """
    found = contributions(run, t - 1).get(site) if t > 0 and run.round(t - 1) else None
    return None if found is None else (found.round, found.attempt)


def next_attempt(run: Run, t: int, site: str) -> int:
    """One more than the site's committed attempts: an attempt that was cut off is taken up again."""
    return run.committed_attempt(t, site) + 1


def check_open(federation: Federation, t: int) -> None:
    """Refuse work for a round that is committed, whose base is not, or that the file does not ask for.

    Raises:
        StoreConflict: round t is committed.
        FederationError: it is beyond rounds.count, or the file gets another recipe than the run was begun with.
        PhotonError: round t - 1 is not committed.
    """
    run = run_of(federation)
    if run.round(t) is not None:
        raise StoreConflict(f"round {t} of run '{run.run}' is committed; what it aggregated stands")
    if (place := place_of(run, t)) > federation.rounds.count:
        back = f", and round {t} would be number {place} after a rollback" if place != t else ""
        raise FederationError(
            f"round {t}: the file has {federation.rounds.count} rounds{back}; raise rounds.count"
        )
    check_recipe(run.birth(), federation)
    if run.round(t - 1) is None:
        remedy = "photon run, or the next federated-round, makes it"
        raise PhotonError(f"round {t} of run '{run.run}' cannot start: round {t - 1} is not committed; {remedy}")


def check_asked(federation: Federation, t: int, site: str) -> None:
    """Refuse one site's work for a round that would not use it; beyond that as `check_open`.

    Raises:
        FederationError: there is no such site, or it is paused, or not sampled in round t.
    """
    if find_site(federation, site).paused:
        raise FederationError(
            f"site '{site}' is paused, and no round asks for it: take its 'paused' out of the file"
        )
    check_open(federation, t)
    if site not in (sampled := sampled_sites(run_of(federation), federation, t)):
        raise FederationError(
            f"round {t} samples {len(sampled)} of {len(federation.active)} sites, and '{site}' is not among them: "
            f"it would not use the update. It asks {', '.join(sampled)}"
        )


def check_in_time(run: Run, update: UpdateManifest) -> None:
    """Say it if the round was committed without the update.

    Raises:
        StoreConflict: it was, while the update was being made.
    """
    manifest, t, site = run.round(update.round), update.round, update.site
    if manifest is not None and manifest.kind != "train":
        raise StoreConflict(
            f"attempt {update.attempt} of site '{site}' for round {t} is not used: {sentence(manifest)}"
        )
    if manifest is not None and (site not in manifest.updates or manifest.updates[site].attempt != update.attempt):
        used = f"with attempt {manifest.updates[site].attempt}" if site in manifest.updates else "without the site"
        raise StoreConflict(
            f"attempt {update.attempt} of site '{site}' for round {t} came too late and is not used: "
            f"the round was committed {used} meanwhile, and stands"
        )


def commit_evaluation(run: Run, t: int, site: str, model: list[FileEntry], scores: dict[str, float]) -> None:
    """Put a site's scores of a candidate for round t at the site's place in the store."""
    try:
        run.store.create(_evaluation_json(run, t, site, model), canonical_json(scores) + b"\n")
    except StoreConflict:
        pass  # evaluated before: the model and the held-out text are the same


def evaluation(run: Run, t: int, site: str, model: list[FileEntry]) -> dict[str, float] | None:
    """The site's committed scores of a candidate: loss, perplexity, tokens; loss and tokens of each of its streams
    where it has several. None while there are none.

    Raises:
        CorruptFile: they are no such finite numbers.
    """
    path = _evaluation_json(run, t, site, model)
    try:
        data = run.store.read(path, EVALUATION_LIMIT)
    except FileNotFoundError:
        return None
    try:
        scores = {name: float(value) for name, value in json.loads(data).items()}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        scores = {}
    finite = all(isfinite(value) and value >= 0 for value in scores.values())
    large = max((value for name, value in scores.items() if name != "perplexity"), default=0.0) > SCORE_LIMIT
    if not set(scores) >= SCORES or not all(map(SCORE.fullmatch, scores)) or not finite or large:
        raise CorruptFile(f"{run.store.locate(path)} does not hold the numbers {', '.join(sorted(SCORES))}")
    return scores


def _evaluation_json(run: Run, t: int, site: str, model: list[FileEntry]) -> str:
    return f"{run.round_dir(t)}/sites/{site}/evaluation-{model_sha256(model)[:16]}.json"


def history(run: Run, last: int | None = None) -> list[RoundManifest]:
    """Every committed round, from 0 to `last`, or to the latest if left out.

    Raises:
        PhotonError: a manifest that the latest one follows is missing or changed.
    """
    latest = run.latest() if last is None else last
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(run.round, range(0 if latest is None else latest + 1)))
    rounds = [manifest for manifest in found if manifest is not None]
    if len(rounds) != len(found):
        t = found.index(None)
        raise PhotonError(f"{run.store.url}: round {t} of run '{run.run}' is missing, but round {latest} is there")
    return rounds


def summary(manifest: RoundManifest) -> list[dict[str, Any]]:
    """One row a sampled or evaluated site, for tables: what it did in this round."""
    rows = []
    for site in sorted({*manifest.sampled, *manifest.evaluations, *manifest.not_evaluated, *manifest.paused}):
        update, scores = manifest.updates.get(site), manifest.evaluations.get(site, {})
        rows.append(
            {
                "round": manifest.round,
                "site": site,
                "tokens": update.tokens if update else 0,
                "train loss": update.metrics["train_loss"] if update else None,
                "validation perplexity": scores.get("perplexity"),
                "bytes sent": update.bytes if update else 0,
                "seconds": update.metrics.get("seconds") if update else None,
                "left out": _why_left_out(manifest, site),
                "not evaluated": manifest.not_evaluated.get(site, ""),
                "incidents": "; ".join(manifest.incidents.get(site, [])),
            }
        )
    return rows


def remarks(manifest: RoundManifest) -> list[str]:
    """What was out of the ordinary in a round, a line each: the guard, who is missing and why, what went on."""
    return [
        *([sentence(manifest)] if manifest.kind != "train" else []),
        *(f"Guard: {note}" for note in manifest.guard),
        *(f"Left out: {site} ({reason})" for site, reason in sorted(manifest.left_out.items())),
        *([f"Paused: {', '.join(manifest.paused)}"] if manifest.paused else []),
        *(f"{site}: {'; '.join(notes)}" for site, notes in sorted(manifest.incidents.items())),
        *(f"Not evaluated: {site} ({reason})" for site, reason in sorted(manifest.not_evaluated.items())),
    ]


def _why_left_out(manifest: RoundManifest, site: str) -> str:
    if site in manifest.paused:
        return "paused"
    return manifest.left_out.get(site, "" if site in manifest.sampled else "not sampled")
