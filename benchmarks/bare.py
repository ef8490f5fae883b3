"""A plain Composer loop over prepared shards, without the federation: the baseline of the comparison.

    python -m benchmarks.bare SPEC.json RESULT.json

Only the network itself is the federation's, so that both do the same arithmetic. Dataset, optimizer, schedule and
trainer are written here from the documentation of Composer and Streaming. SPEC contains the fields of `Spec`.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from schemas.federation import Federation
from schemas.sections.local import Optimizer
from schemas.sections.model import Model
from schemas.view import view_of


@dataclass
class Spec:
    """Specification of the training: one model for each entry of `runs`, over all streams of the entry.

    Args:
        runs: MDS folders and their proportions by name of the run; all runs start from the same initial model.
        steps: optimizer steps of each run.
        batch_size: sequences per step.
        muon: name and numbers of the federation file's optimizer if it is Muon, which is then the federation's;
            None for AdamW with the numbers above.
        side_by_side: number of concurrent runs, each in a process with one thread; 1 for one after the other, in
            one process, with all threads.
        device: device of the training: cpu, in float32; or cuda, in bfloat16.
        save: folder for the trained parameters, <name>.safetensors; None to save nothing.
        save_after: steps after which the parameters are also saved there, as <name>-<step>.safetensors.
        pull: Ditto's pull of each run to a global model: its `strength` (lambda), the steps `every` which the
            model changes, and the files of `models`, in order; None for none.
    """

    model: dict[str, Any]
    runs: dict[str, dict[str, float]]
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    schedule_steps: int
    alpha: float
    clip_norm: float | None
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    seed: int
    muon: dict[str, Any] | None = None
    side_by_side: int = 1
    device: str = "cpu"
    save: str | None = None
    save_after: list[int] = field(default_factory=list)
    pull: dict[str, Any] | None = None
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def run(self, folder: Path, name: str) -> dict[str, Any]:
        """Train in a separate process. Returns imports_s, loop_s, fit_s, tokens and the seconds of each run."""
        from benchmarks.common import python_child

        spec, result = folder / f"{name}.spec.json", folder / f"{name}.result.json"
        spec.write_text(json.dumps(asdict(self)))
        python_child("benchmarks.bare", str(spec), str(result), log=folder / f"{name}.log")
        return dict(json.loads(result.read_text()))


def spec_of(federation: Federation, runs: dict[str, dict[str, float]], steps: int, **changes: Any) -> Spec:
    """The settings of the federation's sites."""
    local, optimizer, schedule = federation.local, federation.local.optimizer, federation.local.schedule
    assert schedule.name == "cosine"
    values: dict[str, Any] = {
        "model": federation.model.model_dump(),
        "runs": runs,
        "steps": steps,
        "batch_size": local.batch_size,
        "lr": optimizer.lr,
        "warmup_steps": schedule.warmup(federation.schedule_steps),
        "schedule_steps": federation.schedule_steps,
        "alpha": schedule.alpha,
        "clip_norm": local.clip_norm,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "seed": federation.seed,
        "muon": optimizer.model_dump() if optimizer.name == "muon" else None,
    }
    return Spec(**(values | changes))


def site_runs(federation: Federation) -> dict[str, dict[str, float]]:
    """One run per site, over the site's training shards."""

    return {
        site.name: {
            str(view_of(federation, site.name).split_dir(stream.name, "train").resolve()): stream.proportion
            for stream in site.streams
        }
        for site in federation.sites
    }


def train_one(spec: Spec, name: str, lock: Any) -> dict[str, float]:
    """Train one run. Returns its seconds, those within fit(), and its tokens."""
    import torch
    from composer import Callback, Logger, State, Trainer
    from composer.algorithms import GradientClipping
    from composer.optim import CosineAnnealingWithWarmupScheduler
    from streaming import Stream, StreamingDataset
    from torch.utils.data import DataLoader
    from typing_extensions import override

    from benchmarks.pull import Pull
    from photon_core.model.decoder import PhotonModel, initial_decoder
    from photon_core.training.optimizer.build import make_optimizer

    class Tokens(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return torch.from_numpy(super().__getitem__(index)["tokens"].astype("int64"))

    class Save(Callback):
        @override
        def batch_end(self, state: State, logger: Logger) -> None:
            step = state.timestamp.batch.value
            if step in spec.save_after:
                _save(spec, f"{name}-{step}", model.decoder)

    def collate(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"tokens": torch.stack(samples)}

    torch.set_num_threads(spec.threads)
    start = time.perf_counter()
    streams = [Stream(local=folder, proportion=share) for folder, share in spec.runs[name].items()]
    with lock:  # two datasets constructed at once would take the same shared memory
        dataset = Tokens(
            streams=streams,
            shuffle=True,
            shuffle_seed=spec.seed,
            num_canonical_nodes=1,
            batch_size=spec.batch_size,
        )
    loader = DataLoader(dataset, batch_size=spec.batch_size, collate_fn=collate, drop_last=True)
    model = PhotonModel(initial_decoder(Model.model_validate(spec.model), spec.seed))
    optimizer: torch.optim.Optimizer
    if spec.muon:
        optimizer = make_optimizer(model.decoder, Optimizer.model_validate(spec.muon))
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            spec.lr,
            betas=spec.betas,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            fused=True,  # as at the sites; the fastest
        )
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=optimizer,
        schedulers=CosineAnnealingWithWarmupScheduler(
            t_warmup=f"{spec.warmup_steps}ba", t_max=f"{spec.schedule_steps}ba", alpha_f=spec.alpha
        ),
        algorithms=[GradientClipping("norm", spec.clip_norm)] if spec.clip_norm else [],
        callbacks=[Save(), *([Pull(model.decoder, **spec.pull)] if spec.pull else [])],
        max_duration=f"{spec.steps}ba",
        device="cpu" if spec.device == "cpu" else "gpu",
        precision="fp32" if spec.device == "cpu" else "amp_bf16",
        seed=spec.seed,
        progress_bar=False,
        log_to_console=False,
    )
    begun = time.perf_counter()
    trainer.fit()
    fit = time.perf_counter() - begun
    tokens = spec.steps * spec.batch_size * model.decoder.wpe.num_embeddings
    if spec.save:
        _save(spec, name, model.decoder)
    trainer.close()
    return {"seconds": time.perf_counter() - start, "fit_s": fit, "tokens": tokens}


def _save(spec: Spec, name: str, decoder: Any) -> None:
    from safetensors.torch import save_file

    assert spec.save is not None
    save_file(dict(decoder.named_parameters()), Path(spec.save) / f"{name}.safetensors")


def _work(spec: Spec, names: list[str], lock: Any, results: Any) -> None:
    for name in names:
        results.put((name, train_one(spec, name, lock)))


def main(spec_path: Path, result_path: Path) -> None:
    """Import, then time the loop over all runs."""
    start = time.perf_counter()
    import composer
    import streaming

    import photon_core.model.decoder  # noqa: F401

    assert composer and streaming
    imported = time.perf_counter()
    spec = Spec(**json.loads(spec_path.read_text()))
    names = list(spec.runs)
    context = get_context("fork")  # the workers inherit the import of composer, as a plain user could arrange
    lock = context.Lock()
    if spec.side_by_side == 1:
        results = {name: train_one(spec, name, lock) for name in names}
    else:
        spec.threads = 1
        queue = context.Queue()
        shares = [names[i :: spec.side_by_side] for i in range(spec.side_by_side)]
        workers = [context.Process(target=_work, args=(spec, share, lock, queue)) for share in shares]
        for worker in workers:
            worker.start()
        results = dict(queue.get(timeout=3600) for _ in names)
        for worker in workers:
            worker.join()
    figures = {
        "imports_s": imported - start,
        "loop_s": time.perf_counter() - imported,
        "fit_s": sum(result["fit_s"] for result in results.values()),
        "tokens": sum(result["tokens"] for result in results.values()),
        "runs": results,
    }
    result_path.write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
