"""CalcBatchSize (Photon, Algorithm 1): the largest micro-batch that fits a site's device, found once.

The number is kept in the site's private folder, under a hash of everything that it depends on: the model, the
optimizer, the precision, the batch, the hardware and its limit, torch. Gradients are accumulated, so the effective
batch never changes. Every trial is a training step in a separate child process, which may run out of memory. Child
processes only.

If a training runs out of memory nevertheless, the search is repeated among smaller numbers. On a GPU, the training
raises the error itself. On a processor, the kernel kills the training or one of its ranks. Then the file has a
mark that the number was being tried, and the kernel's count of such kills has increased since. Anything else that
kills a training (a cancellation, a manual kill -9, a power cut) leaves the count, and the number, unchanged. If
the kernel has killed another program meanwhile, the smaller number costs only speed.
"""

import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from photon_core.errors import ChildFailed, FederationError, PhotonError
from photon_core.evidence.events import Kind, Log
from photon_core.files import write_whole
from photon_core.hardware.device import choose_device
from photon_core.hardware.parallelism import choose_infra, job_infra
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.model.cost import training_memory
from photon_core.model.decoder import empty_decoder, next_token_loss
from photon_core.training.optimizer.build import make_optimizer
from photon_core.training.out_of_memory import (
    forbid_more,
    free_memory,
    is_out_of_memory,
    kernel_kills,
    peak_memory,
    process_status,
)
from schemas.sections.local import Local
from schemas.sections.model import Model
from schemas.view import SiteView

FILE = "micro_batch.json"
MARGIN = 0.95  # of the limit; training holds a little more than a trial: a prefetched batch, a logger
GIGABYTE = 10**9
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Question:
    """The question that a search answers: everything that its result depends on.

    Args:
        model, local: sections of the federation file.
        device: cpu or cuda.
        limit: bytes that training may take; None for the machine's memory.
        ranks: number of devices that share the batch.
    """

    model: Model
    local: Local
    device: str
    limit: int | None
    ranks: int = 1

    @property
    def batch(self) -> int:
        """Sequences per step and device."""
        return -(-self.local.batch_size // self.ranks)

    @property
    def key(self) -> str:
        local = self.local
        work: list[Any] = [self.batch, local.precision, local.optimizer.name, local.proximal is not None]
        work += ["ddp"] if self.ranks > 1 else []
        hardware = [self.device, self.limit, _in_child(_hardware, self.device), torch.__version__]
        return sha256_bytes(canonical_json([self.model.model_dump(mode="json"), work, hardware]))


def find_micro_batch(view: SiteView, folder: Path, ranks: int = 1, log: Log | None = None) -> int | None:
    """The micro-batch: sequences per forward pass on a device of this site; None for the device's whole batch.

    Args:
        view: site; its micro-batch may be a number, auto, or None.
        folder: private folder of the site, which keeps the number.
        ranks: number of devices that share the batch.
        log: log that gets an event if the kernel has killed the last training with the number.

    Raises:
        FederationError: not even one sequence fits.
    """
    setting = view.micro_batch
    if setting != "auto":
        return setting
    question = _question(view, ranks)
    kept, killed = _kept(folder, question), _was_killed(folder, question)
    if kept is not None and not killed:
        _mark_trying(folder, question)
        return kept
    failed = kept or _kept(folder, question, "failed")
    largest = _less_than(question.batch, failed)
    found, trials = search(largest, first_guess(question), lambda size: fits(question, size))
    if not found:
        limit = question.limit
        room = "the memory of its device" if limit is None else f"{limit / GIGABYTE:g} GB"
        raise FederationError(
            f"site '{view.name}': not one sequence of {question.model.max_seq_len} tokens trains in {room}; raise "
            "the site's hardware.memory_gb or local.memory_gb, or take a smaller model"
        )
    if killed and log is not None:
        log.append(Kind.MICRO_BATCH_LOWERED, failed=failed, found=found)
    _write(folder / FILE, {"key": question.key, "micro_batch": found, "trials": trials})
    _mark_trying(folder, question)
    return found


@contextmanager
def lower_if_out_of_memory(folder: Path, report: Report) -> Iterator[Report]:
    """If the block runs out of memory, the next search is among numbers smaller than the one in this folder.

    Args:
        folder: private folder of a site or a node.
        report: callback for steps. The block has to call the callback that it is given instead, which counts the
            first steps.
    """
    reports = 0

    def counted(values: dict[str, Any]) -> None:
        nonlocal reports
        reports += 1
        if reports == 2:  # the second step ran beside the optimizer's state: no later step takes more memory
            _clear_trying(folder)
        report(values)

    try:
        yield counted
    except Exception as error:
        if is_out_of_memory(error) and "micro_batch" in (kept := _read(folder / FILE)):
            _write(folder / FILE, {"key": kept.get("key"), "failed": kept["micro_batch"]})
        elif not isinstance(error, ChildFailed):  # ChildFailed: the kernel may have killed a rank
            _clear_trying(folder)
        raise
    _clear_trying(folder)


def _mark_trying(folder: Path, question: Question) -> None:
    """Record that a training is about to use the number, and the kernel's count of kills at this time."""
    if question.device == "cpu":
        _write(folder / FILE, {**_read(folder / FILE), "trying": kernel_kills()})


def _clear_trying(folder: Path) -> None:
    """Remove the record: the number has trained, or something else went wrong."""
    kept = _read(folder / FILE)
    if kept.pop("trying", None) is not None:
        with suppress(OSError):  # a full disk raises elsewhere, too
            _write(folder / FILE, kept)


def _was_killed(folder: Path, question: Question) -> bool:
    """Whether the last training with the number ended in its first steps, and the kernel has killed since then."""
    before = _kept(folder, question, "trying")
    return before is not None and kernel_kills() > before


def evaluation_batch(view: SiteView) -> int:
    """Sequences per forward pass of an evaluation at this site, as from `at_once`."""
    ranks, micro_batch = job_infra(view).ranks, view.micro_batch
    if micro_batch == "auto":
        split = choose_infra(view).kind == "federation"
        folder = view.node(1).state_dir if split else view.state_dir
        micro_batch = _kept(folder, _question(view, ranks)) or "auto"
    return at_once(view.local, micro_batch, ranks)


def at_once(local: Local, micro_batch: int | str | None, ranks: int) -> int:
    """Sequences per forward pass of an evaluation: no more than of training on one device.

    Args:
        local: section of the federation file.
        micro_batch: micro-batch of the training; None for a device's whole batch, auto if none has been found.
        ranks: number of devices that share the batch.
    """
    share = -(-local.batch_size // ranks)
    return min(micro_batch, share) if isinstance(micro_batch, int) else share if micro_batch is None else 1


def _question(view: SiteView, ranks: int) -> Question:
    gigabytes = view.memory_gb
    limit = None if gigabytes is None else int(gigabytes * GIGABYTE)
    return Question(view.federation.model, view.local, choose_device(view.local), limit, ranks)


def _kept(folder: Path, question: Question, what: str = "micro_batch") -> int | None:
    """The number found earlier for the same question."""
    kept = _read(folder / FILE)
    number = kept.get(what) if kept.get("key") == question.key else None
    return number if isinstance(number, int) else None


def _less_than(batch: int, failed: int | None) -> int:
    """The largest number to try after a training with `failed` ran out of memory: one pass more per batch."""
    if failed is None:
        return batch
    passes = -(-batch // failed) + 1
    return max(1, min(failed - 1, -(-batch // passes)))


def search(largest: int, guess: int, fits: Callable[[int], bool]) -> tuple[int, dict[int, bool]]:
    """The largest size from 1 to `largest` that fits, by bisection from a first guess.

    Args:
        largest: largest size to try.
        guess: first size to try; a good guess saves trials.
        fits: predicate of a size; if a size fits, every smaller size has to fit.

    Returns:
        that size, 0 if not even 1 fits; and the outcome of every trial by size.
    """
    trials: dict[int, bool] = {}
    low, high = 0, largest + 1  # low fits, high does not
    size = min(max(1, guess), largest)
    while high - low > 1:
        trials[size] = fits(size)
        low, high = (size, high) if trials[size] else (low, size)
        near = low + max(1, low // 4) if trials[size] else high - max(1, high // 4)
        # the first trials stay near the guess, which is seldom far off; from the third trial on, bisect
        size = near if len(trials) < 3 and low < near < high else (low + high) // 2
    return low, trials


def first_guess(question: Question) -> int:
    """The most sequences that fit by the estimate of photon_core/model/cost.py; at least 1."""
    room = question.limit if question.limit is not None else _in_child(free_memory, question.device) or 0
    local, model = question.local, question.model
    one, two = (
        training_memory(model, size, local.precision, local.optimizer.name, ddp=question.ranks > 1).total
        for size in (1, 2)
    )
    return max(1, 1 + int((MARGIN * room - one) // (two - one)))


def fits(question: Question, size: int) -> bool:
    """Whether training steps with micro-batches of this size stay within the limit; a child process tries it."""
    return bool(_in_child(_try, question, size, process_status("VmRSS")))


def _in_child(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result in a forked child; None if it ran out of memory, or the kernel killed it for that.

    This process must not have used CUDA.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, function, args), daemon=True)
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = None
    child.join()
    receiver.close()
    if isinstance(answer, str):
        raise PhotonError(f"the search for a micro-batch failed: {answer}")
    return answer


def _answer(channel: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        channel.send(function(*args))
    except Exception as error:
        channel.send(None if is_out_of_memory(error) else f"{type(error).__name__}: {error}")
    finally:
        channel.close()
        os._exit(0)


def _try(question: Question, size: int, resident: int) -> bool:
    """Make two training passes on zeros: the second one runs beside the gradients and the optimizer's state.

    Args:
        question: model, device and limit of the trial.
        size: sequences of the micro-batch.
        resident: bytes in memory of the process that will train; a forked child shares some of them.
    """
    model, local = question.model, question.local
    room = _room(question, resident, free_memory(question.device))
    before = process_status("VmRSS")
    forbid_more(question.device, room)
    decoder = empty_decoder(model, question.device)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    copies = int(local.proximal is not None) + int(question.ranks > 1)  # theta; DDP's buckets of gradients
    kept = [parameter.detach().clone() for parameter in decoder.parameters() for _ in range(copies)]
    optimizer = make_optimizer(decoder, local.optimizer)
    tokens = torch.zeros((size, model.max_seq_len), dtype=torch.int64, device=question.device)
    for number in range(2):
        with torch.autocast(question.device, torch.bfloat16, enabled=local.precision == "amp_bf16"):
            loss = next_token_loss(decoder(tokens), tokens)
        loss.backward()
        if not number:
            optimizer.step()
    del kept
    return question.device == "cuda" or peak_memory() - before <= room


def _room(question: Question, resident: int, free: int) -> int:
    """Bytes that a trial may take. A limit is for the whole process, whose own memory is not on a GPU."""
    if question.limit is None:
        return int(MARGIN * free)
    return min(int(MARGIN * question.limit) - (resident if question.device == "cpu" else 0), free)


def _hardware(device: str) -> list[Any]:
    """The hardware of the trials: the GPU by name and memory, or the processor."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return [properties.name, properties.total_memory]
    return [platform.machine(), os.cpu_count(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, canonical_json(values))
