"""DDP and FSDP: two gloo ranks equal one at the same global batch, and end together whatever ends them."""

import pickle
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from photon_core.errors import ChildFailed, FederationError
from photon_core.evidence.events import Log
from photon_core.jobs.launcher import Launcher
from photon_core.model.decoder import initial_decoder
from photon_core.training import entry
from photon_core.training.job import LocalJob
from photon_core.training.parallel.launch import launch
from photon_core.training.parallel.ranks import Ranks
from photon_core.training.parallel.sharding import parallelism
from photon_core.training.state.checkpoint import Checkpoints
from photon_core.training.train import train
from photon_core.training.trainer import collate_share, count_samples, split_share
from photon_core.update.trained import Trained
from schemas.federation import Federation
from schemas.sections.hardware import Hardware
from schemas.view import view_of
from tests.photon_core.training.conftest import make_federation, write_site
from tests.photon_core.training.test_train import apply, make_job, samples, silent, theta_zero
from tests.shared_memory import left_behind

TWO_STREAMS = ("news", "code")
TWO = Hardware(devices=2, tflops=1)
# a key's bias has no gradient but rounding, which AdamW would make a whole step of
LOCAL: dict[str, Any] = {"optimizer": {"lr": 3e-3, "weight_decay": 0.01, "eps": 1e-5}}
MUON = {"name": "muon", "matrix_lr": 0.01, "lr": 3e-3, "eps": 1e-5}


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 8, 24])
def test_shares_are_disjoint_whole_and_even(size: int, count: int) -> None:
    shares = [list(range(count))[Ranks(rank, size).share(count)] for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_without_a_sample_trains_on_one_that_does_not_count() -> None:
    batch = collate_share([{"tokens": np.arange(4), "id": 7}], Ranks(1, 2))
    assert batch["ids"].tolist() == [7] and batch["empty"] and count_samples(batch) == 0
    (part,) = split_share(batch, 3)
    assert part["tokens"].shape == (1, 4) and count_samples(part) == 0
    batch = collate_share([{"tokens": np.arange(4), "id": number} for number in range(5)], Ranks(0, 2))
    assert batch["id"].tolist() == [0, 1, 2] and count_samples(batch) == 3
    assert [part["id"].tolist() for part in split_share(batch, 2)] == [[0, 1], [2]]
    batch = collate_share([{"tokens": np.arange(4), "id": number} for number in range(5)], Ranks(1, 2))
    parts = split_share(batch, 2)
    assert [part["id"].tolist() for part in parts if not part["empty"]] == [[3, 4]]
    assert len(parts) == 2, "as many as of every rank"


def with_hardware(federation: Federation, hardware: Hardware) -> Federation:
    sites = [site.model_copy(update={"hardware": hardware}) for site in federation.sites]
    return federation.model_copy(update={"sites": sites})


class Case:
    """One federation, its site's shards twice, and the jobs of its rounds: for one process and for two."""

    def __init__(self, folder: Path, sequences: int, rounds: int, micro_batch: int | None, **options: Any) -> None:
        self.micro_batch, self.rounds, self.folder = micro_batch, rounds, folder
        self.federations = []
        for name in ("one", "two"):
            federation = make_federation(folder / name, **{**LOCAL, **options})
            write_site(federation, "alpha", sequences)
            self.federations.append(federation)

    def run_alone(self) -> list[Trained]:
        federation = self.federations[0]
        self.thetas, results = [theta_zero(federation)], []
        for t in range(1, self.rounds + 1):
            results.append(train(self.job(federation, t), silent))
            self.thetas.append(apply(self.thetas[-1], results[-1]))
        return results

    def job(self, federation: Federation, t: int) -> LocalJob:
        return make_job(federation, self.thetas[t - 1], self.folder, t)


Compared = dict[str, tuple[Case, list[Trained], list[Trained]]]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """What one process and two ranks made of the same jobs, whose models are the one process's."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {
        # 22 sequences in batches of 5: shares of 3 and 2, and an epoch's last batch of 2
        "two streams": Case(folder / "streams", 11, 2, 2, streams=("news", "code"), batch_size=5),
        # 21 in batches of 4: the second rank has nothing of an epoch's last batch
        "empty share": Case(folder / "empty", 21, 2, None, steps=6, optimizer_state="average"),
        # 16 in batches of 5 and micro-batches of 2: the last batch of an epoch is one sequence
        "fsdp": Case(
            folder / "fsdp", 8, 2, 2, streams=("news", "code"), batch_size=5, steps=6, checkpoint_steps=2
        ),
        "muon": Case(folder / "muon", 40, 2, None, optimizer=MUON, proximal=0.1, clip_norm=0.5),
    }
    for case in cases.values():
        case.folder.mkdir(exist_ok=True)
    alone = {name: case.run_alone() for name, case in cases.items()}
    jobs = [
        (case.job(case.federations[1], t), case.micro_batch, name == "fsdp")
        for name, case in cases.items()
        for t in (1, 2)
    ]
    (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    script = Path(__file__).with_name("rank_jobs.py")
    assert launch([str(script), str(folder)], 2, 1) == 0
    results = iter(pickle.loads((folder / "results.pickle").read_bytes()))
    return {name: (case, alone[name], [next(results) for _ in (1, 2)]) for name, case in cases.items()}


@pytest.mark.parametrize("name", ["two streams", "empty share", "fsdp", "muon"])
def test_two_ranks_equal_one(compared: Compared, name: str) -> None:
    case, alone, ranks = compared[name]
    for t in range(2):
        assert samples(ranks[t]) == samples(alone[t]), "the same samples in the same order"
        expected, found = apply(case.thetas[t], alone[t]), apply(case.thetas[t], ranks[t])
        assert max(np.abs(found[key] - expected[key]).max() for key in expected) < 1e-5
        assert (ranks[t].tokens, ranks[t].steps) == (alone[t].tokens, alone[t].steps)
        metrics, others = alone[t].metrics, ranks[t].metrics
        missing = {key for key in metrics if key.startswith("valid_")} if name == "fsdp" else set()
        assert others["devices"] == 2 and metrics.keys() - others.keys() == missing
        for key in metrics.keys() - {"tokens_per_second", "seconds", "micro_batch", *missing}:
            assert others[key] == pytest.approx(metrics[key], rel=1e-4), key


def test_the_state_that_two_ranks_leave_is_that_of_one(
    compared: Compared,
) -> None:
    """Round 2 trained from it; its stream continues at the same position for any number of ranks."""
    for _, alone, ranks in compared.values():
        one, two = (torch.load(Path(r[1].folder, "training.pt"), weights_only=True) for r in (alone, ranks))
        assert two["stream"] == one["stream"] and two["samples"] == one["samples"] and two["mix"] == one["mix"]
        assert two["optimizer"].keys() == one["optimizer"].keys()
        for number, values in one["optimizer"].items():
            for key, value in values.items():
                assert torch.allclose(two["optimizer"][number][key], value, rtol=1e-3, atol=1e-6), key
        assert [m.tensors for m in ranks[1].moments] == [m.tensors for m in alone[1].moments]


def test_what_composer_is_told_of_fsdp() -> None:
    from composer.utils import FSDPConfig

    assert parallelism(Ranks(0, 2)) is None
    told = parallelism(Ranks(0, 8, "cuda", sharded=True))
    assert told is not None and list(told) == ["fsdp"]
    assert told["fsdp"].keys() <= FSDPConfig.__dataclass_fields__.keys()
    config = FSDPConfig(**told["fsdp"])
    assert (config.sharding_strategy, config.use_orig_params, config.auto_wrap) == ("FULL_SHARD", True, True)
    decoder = initial_decoder(make_federation(Path()).model, 1)
    wrapped = [name for name, module in decoder.named_modules() if decoder.fsdp_wrap_fn(module)]
    assert wrapped == ["blocks.0", "blocks.1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could")
def test_fsdp_without_a_gpu_is_refused_before_any_rank_starts(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, **LOCAL, device="auto")
    sharded = with_hardware(federation, Hardware(devices=2, tflops=1, parallel="fsdp"))
    with pytest.raises(FederationError, match=r"needs GPUs, but this machine has no usable GPU; look at"):
        train(make_job(sharded, theta_zero(sharded), tmp_path), silent)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="FSDP takes two GPUs")
def test_fsdp_equals_ddp_on_gpus(tmp_path: Path) -> None:
    ends = []
    for parallel in ("ddp", "fsdp"):
        federation = make_federation(tmp_path / parallel, **LOCAL, device="cuda", steps=6, checkpoint_steps=2)
        write_site(federation, "alpha", 21)
        federation = with_hardware(federation, TWO.model_copy(update={"parallel": parallel}))
        theta = theta_zero(federation)
        for t in (1, 2):
            trained = train(make_job(federation, theta, tmp_path, t), silent)
            theta = apply(theta, trained)
        ends.append((theta, trained))
    (ddp, one), (fsdp, other) = ends
    assert max(np.abs(ddp[name] - fsdp[name]).max() for name in ddp) < 1e-5
    for key in ("train_loss", "gradient_norm", "activation_norm", "samples"):
        assert other.metrics[key] == pytest.approx(one.metrics[key], rel=1e-4)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher(slots=1, preload=entry.PRELOAD) as launcher:
        yield launcher


def test_a_cancelled_job_leaves_nothing_and_goes_on_from_its_checkpoint(
    tmp_path: Path, launcher: Launcher
) -> None:
    """Through the fork server, as a site trains; the ranks are in the process group that it kills."""
    before = set(Path("/dev/shm").iterdir())
    federation = make_federation(tmp_path, **LOCAL, steps=30, checkpoint_steps=10)
    write_site(federation, "alpha", 100)
    federation = with_hardware(federation, TWO)
    job = make_job(federation, theta_zero(federation), tmp_path)
    folder = view_of(federation, "alpha").state_dir
    checkpoint = folder / "state" / "checkpoint" / "000001-0001.pt"
    reports: list[dict[str, Any]] = []

    def call(on_report: Any) -> Trained:
        return launcher.run(
            partial(entry.train, job),
            label="site",
            on_report=on_report,
            log_path=tmp_path / "log",
            timeout=200,
        )

    over = threading.Event()

    def cancel() -> None:
        while not checkpoint.exists() and not over.wait(0.01):
            pass
        launcher.cancel("site")

    watch = threading.Thread(target=cancel)
    watch.start()
    try:
        with pytest.raises(ChildFailed, match="site: cancelled"):
            call(reports.append)
    finally:
        over.set()
        watch.join()
    assert not [
        line for line in processes() if str(folder) in line or "photon_core.training.parallel.rank_main" in line
    ]
    assert left_behind(before) == set()
    saved = Checkpoints(folder.absolute(), job).read(Log("run"))
    assert saved is not None and saved["progress"]["steps"] in (10, 20)

    trained = call(reports.append)
    assert trained.metrics["resumed_at_step"] in (10.0, 20.0)
    assert reports and reports[-1]["step"] == reports[-1]["steps"] == 30
    assert left_behind(before) == set() and not list(Path(tempfile.gettempdir()).glob("ranks-*"))

    alone = make_federation(tmp_path / "alone", **LOCAL, steps=30)
    write_site(alone, "alpha", 100)
    one = train(make_job(alone, theta_zero(alone), tmp_path), silent)
    theta = theta_zero(alone)
    expected, found = apply(theta, one), apply(theta, trained)
    assert samples(trained) == samples(one)
    assert max(np.abs(found[key] - expected[key]).max() for key in expected) < 1e-4  # 30 steps' rounding
    assert trained.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], rel=1e-5)


def processes() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return lines
