"""A round's model as a folder that transformers loads offline: weights, tokenizer, card."""

import json
import shutil
import uuid
from pathlib import Path

from photon_core.data.tokenizer import Tokenizer, load_tokenizer
from photon_core.errors import FederationError, PhotonError
from photon_core.export.card import model_card
from photon_core.export.tokenizer import write_tokenizer
from photon_core.export.weights import write_weights
from photon_core.files import make_folder, sync_folder, sync_tree
from photon_core.model.gpt2 import gpt2_config
from photon_core.run.history import check_kept, history
from photon_core.run.line import on_line
from photon_core.run.opening import check_frozen
from photon_core.run.run import Run, run_of
from schemas.federation import Federation
from schemas.manifests import RoundManifest
from schemas.sections.overlap import check_target


def export_round(federation: Federation, t: int | None, folder: Path) -> RoundManifest:
    """Write the model of round t (the last round if None) into a new folder, which appears atomically.

    Raises:
        FederationError: the folder is not free, it overlaps with a place that the file names, or the file does not
            belong to the run.
        PhotonError: the round is not committed, or photon gc removed its model.
        CorruptFile: the store's files do not match the manifests.
    """
    check_target(federation, "--to", folder)
    check_free(folder)
    run, manifest, tokenizer = open_committed(federation, t)
    make_folder(folder.parent)
    part = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}.part")
    part.mkdir()
    try:
        write_weights(run, manifest, federation.model, part)
        write_tokenizer(tokenizer, part, federation.model.max_seq_len)
        config = gpt2_config(federation.model, tokenizer.eot)
        _write_json(part / "config.json", config)
        _write_json(part / "generation_config.json", generation_config(federation, tokenizer))
        rounds = on_line(history(run, manifest.round))
        (part / "README.md").write_text(model_card(federation, rounds), "utf-8")
        check_free(folder)
        sync_tree(part)
        part.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def check_free(folder: Path) -> None:
    """Refuse a place that is not free. An empty folder is free."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FederationError(f"--to {folder}: is a file or a link; write a folder that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise FederationError(f"--to {folder}: the folder is not empty, and nothing is overwritten; write another")


def open_committed(federation: Federation, t: int | None) -> tuple[Run, RoundManifest, Tokenizer]:
    """The run, one of its committed rounds, and its tokenizer, all checked against the federation file.

    Args:
        federation: federation file.
        t: number of the round; None for the last one.

    Raises:
        FederationError: the file's model or tokenizer is not the run's.
        PhotonError: the round is not committed.
    """
    run = run_of(federation)
    birth, latest = run.run_manifest(), run.latest()
    if birth is None or latest is None:
        raise PhotonError(f"run '{federation.run}' has no rounds in {run.store.url} yet. Write: photon run")
    tokenizer = load_tokenizer(federation.tokenizer)
    check_frozen(birth, federation, tokenizer.sha256)
    manifest = run.round(latest if t is None else t)
    if manifest is None:
        raise PhotonError(f"round {t} of run '{federation.run}' is not committed; write --round 0 to {latest}")
    check_kept(run, manifest.round)
    return run, manifest, tokenizer


def generation_config(federation: Federation, tokenizer: Tokenizer) -> dict[str, object]:
    """generation_config.json: the defaults of transformers, such as where it stops."""
    return {
        "bos_token_id": tokenizer.eot,
        "eos_token_id": tokenizer.eot,
        "pad_token_id": tokenizer.eot,
        "do_sample": True,
        "max_length": federation.model.max_seq_len,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
