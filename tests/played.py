"""A tree of federations without training: a site's update is drawn from its name and its model.

The rounds, entries and contributions are the real ones; only flows, tasks and children are missing. So a whole
tree takes a fraction of a second, and may be broken anywhere and continued.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from photon_core.aggregation import fit
from photon_core.aggregation.attempts import is_done
from photon_core.aggregation.candidate import RoundLog
from photon_core.aggregation.commit import commit
from photon_core.aggregation.engine.inputs import Limits
from photon_core.aggregation.gather import usable
from photon_core.aggregation.round import aggregate_round
from photon_core.aggregation.routing import has_residuals, send_down
from photon_core.data.tokenizer import load_tokenizer
from photon_core.hashing import sha256_bytes
from photon_core.model.key_layers import names_in
from photon_core.model.shapes import moment_shapes
from photon_core.run.birth import as_born, as_entered
from photon_core.run.members import SiteMember, member, world_of
from photon_core.run.opening import open_run
from photon_core.run.run import Run, run_of
from photon_core.run.sampling import sampled_members
from photon_core.run.start import make_initial
from photon_core.run.updates import next_attempt
from photon_core.tensors.container import tensors_of
from photon_core.tensors.local import LocalTensors
from photon_core.tensors.shards import put_file, write_shards
from photon_core.update.post_process import PostProcess, noise_generator
from photon_core.update.settings import work_sha256
from schemas.federation import Federation
from schemas.manifests import FileEntry, RoundManifest, TensorEntry, UpdateManifest
from schemas.protocol import PROTOCOL
from schemas.reading.world import World, load_world
from schemas.view import SiteView

MODEL = {"n_layers": 2, "d_model": 8, "n_heads": 1, "vocab_size": 257, "max_seq_len": 16}

Play = Callable[..., "Played"]  # with keywords as for `write_world`


class Played:
    """Plays rounds of a tree.

    Args:
        file: the root's.
        step: size of each element of a site's change, before clipping.

    Attributes:
        trained: (run, round, site) -> how often it was trained.
    """

    def __init__(self, file: Path, step: float = 0.01) -> None:
        self.file, self.step = file, step
        self.trained: Counter[tuple[str, int, str]] = Counter()

    @property
    def world(self) -> World:
        return load_world(self.file)

    def run(self, *path: str) -> Run:
        """The run of the root, or of the node on this path below it."""
        world = self.world
        for name in path:
            world = world.children[name]
        return run_of(world.federation)

    def chain(self, *path: str) -> list[RoundManifest]:
        """All committed rounds of that run."""
        run = self.run(*path)
        return [run.round(t) for t in range((run.latest() or 0) + 1)]  # type: ignore[misc]

    def play(self, rounds: int = 1) -> RoundManifest:
        """The root's next rounds, as `photon run` makes them. Returns the last one's manifest."""
        federation = self.world.federation
        run = run_of(federation)
        with TemporaryDirectory() as scratch:
            tokenizer = load_tokenizer(federation.tokenizer).sha256
            open_run(run, federation, tokenizer, lambda: make_initial(federation, Path(scratch)))
        for _ in range(rounds):
            self.round(as_born(run, federation), (run.latest() or 0) + 1)
        manifest = run.round(run.latest() or 0)
        assert manifest is not None
        return manifest

    def round(self, federation: Federation, t: int, absent: tuple[str, ...] = ()) -> RoundManifest:
        """Round t of one node; these members do not come."""
        run = run_of(federation)
        sampled, left_out = sampled_members(run, federation, t), {}
        if has_residuals(federation, t):
            send_down(run, federation, t, sampled, Limits.of(federation.aggregation))
        for name in sampled:
            one = member(federation, name)
            if name in absent:
                left_out[name] = "away"
            elif isinstance(one, SiteMember):
                self.train(run, one.view, t)
            else:
                self.fit(federation, name, t)
        candidate = aggregate_round(run, federation, t, sampled, left_out)
        return commit(run, federation, candidate, RoundLog(sampled))

    def enter(
        self, federation: Federation, name: str, t: int, attempt: int = 1
    ) -> tuple[Federation, fit.Call, RoundManifest]:
        """The beginning of `fit`."""
        child, call = world_of(federation, name).federation, fit.call_of(federation, name, t, attempt)
        with TemporaryDirectory() as scratch:
            folder, tokenizer = Path(scratch), load_tokenizer(child.tokenizer).sha256
            open_run(run_of(child), child, tokenizer, lambda: fit.initial_of(call, folder / "initial"))
            entry = fit.enter(run_of(child), child, call, folder)
        return as_entered(child, entry), call, entry

    def fit(self, federation: Federation, name: str, t: int) -> UpdateManifest:
        """A member that is a federation does its part, as flows/federated_round.py has it."""
        run = run_of(federation)
        if (done := usable(run, member(federation, name), t, 1)) is not None:
            return done
        child, call, entry = self.enter(federation, name, t, next_attempt(run, t, name))
        for n in fit.rounds_to_make(run_of(child), child, entry):
            self.round(child, n)
        return fit.contribute(run_of(child), child, call, entry)

    def train(self, run: Run, view: SiteView, t: int, **changes: Any) -> None:
        """A site's update for round t, unless it is committed; `changes` are of its manifest."""
        if not changes and is_done(run, view, t):
            return
        self.trained[run.run, t, view.name] += 1
        attempt = next_attempt(run, t, view.name)
        run.commit_update(self.update(run, view, t, attempt).model_copy(update=changes))

    def update(self, run: Run, view: SiteView, t: int, attempt: int) -> UpdateManifest:
        """Its manifest; its files are in the store."""
        base = run.round(t - 1)
        assert base is not None
        theta = tensors(run, run.files_dir(t - 1), base.model)
        local, folder = view.federation.local, run.site_dir(t, view.name, attempt)
        after = drawn(run, view.name, t, self.step)
        keys, noise = names_in(base.key_layers), None
        if view.update.noise_multiplier:
            view.state_dir.mkdir(parents=True, exist_ok=True)
            noise = noise_generator(view.state_dir / "noise.key", f"{base.model_sha256} {attempt}")
        process = PostProcess(view.update, theta.__getitem__, after.__getitem__, theta, {}, noise)
        files = put(run, folder, {n: process.encode(n) for n in after if n not in keys})
        layers = [
            entry
            for layer, names in base.key_layers.items()
            for entry in put(run, folder, {name: process.whole(name) for name in names}, f"{layer}-")
        ]
        moments = []
        if local.optimizer_state == "average":
            shapes = moment_shapes(view.federation.model, local.optimizer.name, keys)
            for kind in sorted({name.partition(".")[0] for name in shapes}):
                own = {n: np.full(s, 1e-3, np.float32) for n, s in shapes.items() if n.startswith(f"{kind}.")}
                moments += put(run, folder, own, f"{kind}-")
        return UpdateManifest(
            **{"run": run.run, "round": t, "site": view.name, "attempt": attempt, "codec": process.codec.name},
            **{"files": files, "key_layers": layers, "moments": moments},
            **{"clip_norm": view.update.clip_norm, "noise_multiplier": view.update.noise_multiplier},
            base_sha256=base.model_sha256,
            entry_sha256=base.model_sha256 if keys else "",
            tokens=view.steps * local.batch_size * view.federation.model.max_seq_len,
            steps=view.steps,
            metrics={"train_loss": 5.0, **process.metrics()},
            **{"data_sha256": "", "versions": {}, "protocol": PROTOCOL},
            previous_sha256=run.round_sha256(t - 1),
            work=work_sha256(view.federation),
        )


def drawn(run: Run, site: str, t: int, step: float = 0.01) -> dict[str, np.ndarray]:
    """What a site has trained in round t: the model of round t-1, and random numbers of this size."""
    base = run.round(t - 1)
    assert base is not None
    seed = int(sha256_bytes(f"{site} {base.model_sha256}".encode())[:16], 16)
    random, theta = np.random.default_rng(seed), tensors(run, run.files_dir(t - 1), base.model)
    return {n: (a + step * random.standard_normal(a.shape)).astype(np.float32) for n, a in sorted(theta.items())}


def tensors(run: Run, folder: str, files: list[FileEntry]) -> dict[str, np.ndarray]:
    """What the files of a folder hold."""
    with TemporaryDirectory() as scratch:
        paths = run.store.fetch_all(files, folder, Path(scratch), 1)
        found = LocalTensors([(path, tensors_of(path)) for path in paths])
        return {name: found.array(name) for name in found.tensors}


def put(run: Run, folder: str, arrays: dict[str, np.ndarray], stem: str = "") -> list[FileEntry]:
    """Arrays in files of a folder of the store."""
    names = {"float32": "F32", "int32": "I32", "uint16": "BF16"}
    layout = {n: TensorEntry(dtype=names[str(a.dtype)], shape=a.shape) for n, a in arrays.items()}
    with TemporaryDirectory() as scratch:
        entries = list(write_shards(Path(scratch), stem, layout, 1 << 20, arrays.__getitem__))
        return [put_file(run.store, Path(scratch) / entry.path, folder, entry=entry) for entry in entries]


def edit(file: Path, **sections: Any) -> None:
    """Change sections of a federation file."""
    data = yaml.safe_load(file.read_text()) | sections
    file.write_text(yaml.safe_dump(data, sort_keys=False))
