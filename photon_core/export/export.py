"""A node's model as a folder that transformers loads offline: weights, tokenizer, card."""

import json
import shutil
import uuid
from pathlib import Path

from photon_core.data.tokenizer import Tokenizer
from photon_core.errors import FederationError
from photon_core.export.card import model_card
from photon_core.export.model import NodeModel
from photon_core.export.node import Node
from photon_core.export.tokenizer import write_tokenizer
from photon_core.export.weights import write_weights
from photon_core.files import make_folder, sync_folder, sync_tree
from photon_core.model.gpt2 import gpt2_config
from photon_core.run.history import history
from photon_core.run.line import on_line
from photon_core.run.run import run_of
from schemas.federation import Federation
from schemas.sections.overlap import check_target


def export_model(model: NodeModel, folder: Path) -> None:
    """Write a model into a new folder, which appears atomically.

    Raises:
        FederationError: the folder is not free, or it overlaps with a place that the file names.
        CorruptFile: the model's files do not match their manifest.
    """
    federation, tokenizer = model.node.federation, model.tokenizer
    check_place(model.node, folder)
    make_folder(folder.parent)
    part = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}.part")
    part.mkdir()
    try:
        write_weights(model.source, federation.model, part)
        write_tokenizer(tokenizer, part, federation.model.max_seq_len)
        config = gpt2_config(federation.model, tokenizer.eot)
        _write_json(part / "config.json", config)
        _write_json(part / "generation_config.json", generation_config(federation, tokenizer))
        rounds = on_line(history(run_of(federation), model.round))
        (part / "README.md").write_text(model_card(model, rounds), "utf-8")
        _check_free(folder)
        sync_tree(part)
        part.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_place(node: Node, folder: Path) -> None:
    """Refuse a place for an export that is not free, or overlaps with a place of the federation or its parent.

    Raises:
        FederationError: naming the place and the remedy.
    """
    for world in (node.world, node.parent):
        if world is not None:
            check_target(world.federation, "--to", folder)
    _check_free(folder)


def _check_free(folder: Path) -> None:
    """An empty folder is free."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FederationError(f"--to {folder}: is a file or a link; write a folder that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise FederationError(f"--to {folder}: the folder is not empty, and nothing is overwritten; write another")


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
