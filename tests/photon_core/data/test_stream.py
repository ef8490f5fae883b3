"""What training and evaluation read: mixture, order, shared memory, held-out sequences."""

import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from photon_core.data.held_out import even_shares, valid_sequences
from photon_core.data.mds import read_index, read_shard
from photon_core.data.prepare import prepare_site
from photon_core.data.shared_memory import SHARED_MEMORY, release, shm_prefix
from photon_core.data.stream import stream_hash, train_dataset
from photon_core.errors import DataError
from schemas.federation import Federation
from schemas.view import view_of


def shared_names() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()}


@pytest.fixture(autouse=True)
def _lock_files_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def one_stream(
    tmp_path: Path,
    make_federation: Callable[..., Federation],
    library_texts: Callable[..., list[str]],
    write_jsonl: Callable[..., Path],
) -> Federation:
    federation = make_federation({"a": str(write_jsonl(tmp_path / "a.jsonl", library_texts("socket")))})
    prepare_site(view_of(federation, "s"))
    return federation


def test_an_epoch_is_every_sample_once(one_stream: Federation) -> None:
    dataset = train_dataset(view_of(one_stream, "s"), seed=3)
    samples = list(dataset)
    release(dataset)
    shards = read_index(view_of(one_stream, "s").split_dir("a", "train"))
    tokens = np.concatenate([read_shard(shard)[1] for shard in shards])
    ids = [sample["id"] for sample in samples]
    assert sorted(ids) == list(range(len(tokens)))
    assert ids != sorted(ids)
    for sample in samples:
        assert sample["tokens"].dtype == np.int64
        assert np.array_equal(sample["tokens"], tokens[sample["id"]])


@pytest.mark.timeout(120)
def test_shards_that_cannot_be_unpacked_are_an_error_not_a_wait(one_stream: Federation) -> None:
    with unpacking(one_stream) as dataset, full_disk():
        for _ in range(2):  # the second one does not wait for the one that failed
            with pytest.raises(OSError, match="File too large"):
                dataset.prepare_shard(0)
        with pytest.raises(OSError, match="File too large"):
            list(dataset)
        with pytest.raises(OSError, match="File too large"):
            list(dataset)


@pytest.mark.timeout(120)
def test_an_error_of_the_thread_that_waits_for_shards_is_one_too(
    one_stream: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unpacking(one_stream) as dataset, full_disk():
        with pytest.raises(OSError, match="File too large"):
            dataset.prepare_shard(0)  # from here on it is missing, and who waits for it unpacks it
        monkeypatch.setattr(dataset, "_prepare_thread", lambda _: None)
        with pytest.raises(OSError, match="File too large"):
            list(dataset)


@pytest.mark.timeout(120)
def test_a_reader_that_cannot_unpack_a_shard_ends_the_threads(one_stream: Federation) -> None:
    with unpacking(one_stream) as dataset:
        next(iter(dataset))
        for unpacked in view_of(one_stream, "s").split_dir("a", "train").glob("*.mds"):
            unpacked.unlink()
        with full_disk(), pytest.raises(OSError, match="File too large"):
            dataset.prepare_shard(0)
        with pytest.raises(RuntimeError, match="Background thread failed"):
            dataset.get_item(0)


@contextmanager
def unpacking(federation: Federation) -> Iterator[Any]:
    """The site's dataset, which must be able to end."""
    dataset = train_dataset(view_of(federation, "s"), 1)
    try:
        yield dataset
        dataset._iterator.exit()
    finally:
        release(dataset)


@contextmanager
def full_disk() -> Iterator[None]:
    """The kernel refuses to write, as it does when a disk is full; anyone may ask it to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_order_follows_from_the_seed(one_stream: Federation) -> None:
    orders = []
    for seed in (3, 3, 4):
        dataset = train_dataset(view_of(one_stream, "s"), seed)
        orders.append([sample["id"] for sample in dataset])
        release(dataset)
    assert orders[0] == orders[1] != orders[2]


def test_streams_are_mixed_by_their_proportions(two_streams: Federation) -> None:
    prepare_site(view_of(two_streams, "s"))
    site = two_streams.sites[0]
    streams = [site.streams[0].model_copy(update={"proportion": 0.25})]
    streams += [site.streams[1].model_copy(update={"proportion": 0.75})]
    mixed = two_streams.model_copy(update={"sites": [site.model_copy(update={"streams": streams})]})
    dataset = train_dataset(view_of(mixed, "s"), seed=3)
    counts = [stream.choose for stream in dataset.streams]
    release(dataset)
    assert sum(counts) == dataset.size
    assert counts[0] / sum(counts) == pytest.approx(0.25, abs=0.01)


def test_an_epoch_passes_over_a_stream_as_often_as_its_repeat_says(two_streams: Federation) -> None:
    prepare_site(view_of(two_streams, "s"))
    site = two_streams.sites[0]
    once, thrice = (
        s.model_dump() | {"proportion": 1, "repeat": n} for s, n in zip(site.streams, (1, 3), strict=True)
    )
    repeated = two_streams.model_dump() | {"sites": [site.model_dump() | {"streams": [once, thrice]}]}
    mixed = Federation.model_validate(repeated)
    dataset = train_dataset(view_of(mixed, "s"), seed=3)
    size = int(dataset.samples_per_stream[0])
    numbers = [sample["id"] for sample in dataset]
    counts = [int(count) for count in dataset.samples_per_stream]
    release(dataset)
    assert sorted(numbers) == sorted([*range(size), *(3 * list(range(size, sum(counts))))])
    assert stream_hash(view_of(mixed, "s")) != stream_hash(view_of(two_streams, "s"))


@pytest.mark.parametrize("whole", [True, False])
def test_released_dataset_leaves_no_shared_memory(one_stream: Federation, whole: bool) -> None:
    before = shared_names()
    dataset = train_dataset(view_of(one_stream, "s"), seed=3)
    next(iter(dataset))
    assert {name for name in shared_names() - before if name.startswith(shm_prefix(dataset))}
    release(dataset, whole)  # this process has made all of its names
    assert not {name for name in shared_names() - before if name.startswith(shm_prefix(dataset))}
    release(dataset)


def test_what_strangers_left_in_part_is_passed_over(one_stream: Federation) -> None:
    left = strangers(one_stream)
    try:
        dataset = train_dataset(view_of(one_stream, "s"), seed=3)
        assert shm_prefix(dataset) not in {file.name[:7] for file in left}
        release(dataset)
        assert all(file.exists() for file in left)
    finally:
        for file in left:
            file.unlink(missing_ok=True)


def strangers(federation: Federation) -> list[Path]:
    """What two killed processes have left, under the next two free numbers."""
    for _ in range(20):
        first = train_dataset(view_of(federation, "s"), seed=3)
        number = int(shm_prefix(first)[:6])
        release(first)
        left: list[Path] = []
        try:
            for i, name in enumerate(("barrier", "locals")):
                file = SHARED_MEMORY / f"{number + i:06d}_{name}"
                with file.open("xb") as damaged:
                    damaged.write(b"left by a killed process")
                left.append(file)
            return left
        except FileExistsError:  # a dataset of another process has it by now
            for file in left:
                file.unlink()
    pytest.fail("other processes hold the numbers after the next free one: remove what killed ones have left")


def _construct(federation: Federation, start: Any, results: Any) -> None:
    start.wait()
    try:
        for _ in range(5):
            dataset = train_dataset(view_of(federation, "s"), seed=3)
            assert len(list(dataset)) == dataset.size
            release(dataset)
        results.put("done")
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.slow
def test_datasets_constructed_at_the_same_moment_do_not_collide(one_stream: Federation, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(6), context.Queue()
    children = [context.Process(target=_construct, args=(one_stream, start, results)) for _ in range(6)]
    for child in children:
        child.start()
    assert [results.get(timeout=120) for _ in children] == ["done"] * 6
    for child in children:
        child.join()
    # other programs' datasets may be there: ours name the folder that they read
    ours = str(view_of(one_stream, "s").split_dir("a", "train")).encode()
    for name in shared_names():
        with suppress(FileNotFoundError):
            assert not name.endswith("_locals") or ours not in (SHARED_MEMORY / name).read_bytes()
    assert not list((tmp_path / "tmp").glob("*_filelock"))


def test_stream_hash_names_the_mix(two_streams: Federation) -> None:
    prepare_site(view_of(two_streams, "s"))
    site = two_streams.sites[0]

    def with_streams(streams: list[Any]) -> Federation:
        return two_streams.model_copy(update={"sites": [site.model_copy(update={"streams": streams})]})

    one, two = site.streams
    hashes = {
        stream_hash(view_of(two_streams, "s")),
        stream_hash(view_of(with_streams([two, one]), "s")),
        stream_hash(view_of(with_streams([one]), "s")),
        stream_hash(view_of(with_streams([one.model_copy(update={"proportion": 0.1}), two]), "s")),
    }
    assert len(hashes) == 4
    assert stream_hash(view_of(with_streams([one, two]), "s")) in hashes
    with pytest.raises(DataError, match="stream 'new' of site 's' is not prepared; run photon prepare --site s"):
        stream_hash(view_of(with_streams([one.model_copy(update={"name": "new"})]), "s"))


def test_valid_sequences_come_from_all_streams(two_streams: Federation) -> None:
    manifest = prepare_site(view_of(two_streams, "s"))
    held_out = {
        name: {
            row.tobytes()
            for s in read_index(view_of(two_streams, "s").split_dir(name, "valid"))
            for row in read_shard(s)[1]
        }
        for name in ("one", "two")
    }
    few = valid_sequences(view_of(two_streams, "s"), 10)
    assert few.shape == (10, 64)
    assert few.dtype == np.int64
    for name in held_out:
        assert sum(row.astype(np.uint16).tobytes() in held_out[name] for row in few) == 5
    everything = valid_sequences(view_of(two_streams, "s"), 10**6)
    assert len(everything) == manifest.valid_sequences
    assert {row.astype(np.uint16).tobytes() for row in everything} == held_out["one"] | held_out["two"]
    assert np.array_equal(few, valid_sequences(view_of(two_streams, "s"), 10))


@pytest.mark.parametrize(
    ("counts", "limit", "shares"),
    [([5, 5], 4, [2, 2]), ([1, 9], 6, [1, 5]), ([9, 1], 6, [5, 1]), ([2, 2], 9, [2, 2]), ([0, 3], 2, [0, 2])],
)
def test_even_shares(counts: list[int], limit: int, shares: list[int]) -> None:
    assert even_shares(counts, limit) == shares


def test_unprepared_site_says_what_to_run(make_federation: Callable[..., Federation]) -> None:
    federation = make_federation({"a": "x.txt"})
    for function in (
        lambda: train_dataset(view_of(federation, "s"), 1),
        lambda: valid_sequences(view_of(federation, "s"), 1),
    ):
        with pytest.raises(DataError, match=r"data\.json: does not exist.*run photon prepare --site s"):
            function()
