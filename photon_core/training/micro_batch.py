"""CalcBatchSize (Photon, Algorithm 1): the largest micro-batch that fits a site's device, found once.

Kept in the site's private folder under a hash of all that it depends on: the model, the optimizer, the precision,
the batch, the hardware and its limit, torch. Gradients are accumulated, so the effective batch never changes.
Every trial is a training step in a child process of its own, which may die of it. Child processes only.

A training that runs out of memory all the same has the number found anew, among smaller ones. On a GPU it says so
itself. On a processor the kernel kills it, or one of its ranks: the file then says that the number was being
tried, and the kernel's own count of such kills has gone up since. Whatever else kills a training (a cancellation,
a person's kill -9, a power cut) leaves the count, and the number, as they are. Should the kernel have killed
another program meanwhile, the smaller number costs speed alone.
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
MARGIN = 0.95  # of the limit; training holds a little more than a trial: a batch ahead, a logger
GIGABYTE = 10**9
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Question:
    """What a search answers, and depends on.

    Args:
        model, local: of the federation file.
        device: cpu or cuda.
        limit: bytes that training may take; None for what the machine has.
        ranks: devices that share the batch.
    """

    model: Model
    local: Local
    device: str
    limit: int | None
    ranks: int = 1

    @property
    def batch(self) -> int:
        """Sequences a step and device."""
        return -(-self.local.batch_size // self.ranks)

    @property
    def key(self) -> str:
        local = self.local
        work: list[Any] = [self.batch, local.precision, local.optimizer.name, local.proximal is not None]
        work += ["ddp"] if self.ranks > 1 else []
        hardware = [self.device, self.limit, _in_child(_hardware, self.device), torch.__version__]
        return sha256_bytes(canonical_json([self.model.model_dump(mode="json"), work, hardware]))


def find_micro_batch(view: SiteView, folder: Path, ranks: int = 1, log: Log | None = None) -> int | None:
    """Sequences that go through the model at once on a device of this site; None for the device's whole batch.

    Args:
        view: the site; its micro-batch may be a number, auto, or nothing.
        folder: the site's private folder, where the number that was found is kept.
        ranks: devices that share the batch.
        log: gets it if the kernel has killed the last training that took the number.

    Raises:
        FederationError: not one sequence fits.
    """
    wanted = view.micro_batch
    if wanted != "auto":
        return wanted
    question = _question(view, ranks)
    kept, killed = _kept(folder, question), _was_killed(folder, question)
    if kept is not None and not killed:
        _try_out(folder, question)
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
    _try_out(folder, question)
    return found


@contextmanager
def found_anew(folder: Path, report: Report) -> Iterator[Report]:
    """What runs out of memory inside has the number in this private folder searched again, among smaller ones.

    Args:
        folder: a site's private one, or a node's.
        report: told of steps; to be called in the way that is given back, from which the first steps are counted.
    """
    reports = 0

    def told(values: dict[str, Any]) -> None:
        nonlocal reports
        reports += 1
        if reports == 2:  # the second step ran beside the optimizer's state: none takes more
            _tried_out(folder)
        report(values)

    try:
        yield told
    except Exception as error:
        if is_out_of_memory(error) and "micro_batch" in (kept := _read(folder / FILE)):
            _write(folder / FILE, {"key": kept.get("key"), "failed": kept["micro_batch"]})
        elif not isinstance(error, ChildFailed):  # that may be a rank which was killed
            _tried_out(folder)
        raise
    _tried_out(folder)


def _try_out(folder: Path, question: Question) -> None:
    """Write down that a training is about to take the number, and how often the kernel has killed until now."""
    if question.device == "cpu":
        _write(folder / FILE, {**_read(folder / FILE), "trying": kernel_kills()})


def _tried_out(folder: Path) -> None:
    """The number is out of danger: it has trained, or something else went wrong."""
    kept = _read(folder / FILE)
    if kept.pop("trying", None) is not None:
        with suppress(OSError):  # a full disk, which others will tell of
            _write(folder / FILE, kept)


def _was_killed(folder: Path, question: Question) -> bool:
    """Whether the last training with the number ended in its first steps, and the kernel has killed since."""
    before = _kept(folder, question, "trying")
    return before is not None and kernel_kills() > before


def evaluation_batch(view: SiteView) -> int:
    """Sequences that an evaluation at this site puts through the model at once; as for `at_once`."""
    ranks, micro_batch = job_infra(view).ranks, view.micro_batch
    if micro_batch == "auto":
        split = choose_infra(view).kind == "federation"
        folder = view.node(1).state_dir if split else view.state_dir
        micro_batch = _kept(folder, _question(view, ranks)) or "auto"
    return at_once(view.local, micro_batch, ranks)


def at_once(local: Local, micro_batch: int | str | None, ranks: int) -> int:
    """Sequences that an evaluation puts through the model at once: no more than training does on one device.

    Args:
        micro_batch: of the training; None for a device's whole batch, auto where none has been found.
        ranks: devices that share the batch.
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
    """The most sequences at once to try, after a training with `failed` ran out of memory: one pass more."""
    if failed is None:
        return batch
    passes = -(-batch // failed) + 1
    return max(1, min(failed - 1, -(-batch // passes)))


def search(largest: int, guess: int, fits: Callable[[int], bool]) -> tuple[int, dict[int, bool]]:
    """The largest of 1 to `largest` that fits, by bisection from a first guess.

    Args:
        largest: the whole batch.
        guess: where to begin; a good one saves trials.
        fits: whether a size does; if one does, so do the smaller ones.

    Returns:
        that size, 0 if not even 1 fits; and what was tried.
    """
    trials: dict[int, bool] = {}
    low, high = 0, largest + 1  # low fits, high does not
    size = min(max(1, guess), largest)
    while high - low > 1:
        trials[size] = fits(size)
        low, high = (size, high) if trials[size] else (low, size)
        near = low + max(1, low // 4) if trials[size] else high - max(1, high // 4)
        # beside the guess first, which is seldom far off; from the third trial on in the middle
        size = near if len(trials) < 3 and low < near < high else (low + high) // 2
    return low, trials


def first_guess(question: Question) -> int:
    """The most sequences that the estimate of photon_core.model.cost lets fit; at least 1."""
    room = question.limit if question.limit is not None else _in_child(free_memory, question.device) or 0
    local, model = question.local, question.model
    one, two = (
        training_memory(model, size, local.precision, local.optimizer.name, ddp=question.ranks > 1).total
        for size in (1, 2)
    )
    return max(1, 1 + int((MARGIN * room - one) // (two - one)))


def fits(question: Question, size: int) -> bool:
    """Whether training steps with micro-batches of this size stay within the limit; tried in a child process."""
    return bool(_in_child(_try, question, size, process_status("VmRSS")))


def _in_child(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns in a forked child; None if it ran out of memory, or the kernel killed it for it.

    This process must not have touched CUDA.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(there, function, args), daemon=True)
    child.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        answer = None
    child.join()
    here.close()
    if isinstance(answer, str):
        raise PhotonError(f"the search for a micro-batch: {answer}")
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
    """Train twice on zeros: the second pass runs beside the gradients and the optimizer's state.

    Args:
        question: what is trained, and where.
        size: of the micro-batch.
        resident: bytes that the process had in memory which will train; a forked child shares some of them.
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
    """Bytes that a trial may take of those free; a limit is the whole process's, whose own memory no GPU holds."""
    if question.limit is None:
        return int(MARGIN * free)
    return min(int(MARGIN * question.limit) - (resident if question.device == "cpu" else 0), free)


def _hardware(device: str) -> list[Any]:
    """What the trials run on: the GPU by name and memory, or the processor."""
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
