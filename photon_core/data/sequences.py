"""The dataset that training reads: streaming's, with token ids in torch's index type.

Importing this module imports streaming and torch: only training processes import it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from streaming import StreamingDataset
from streaming.base.dataset import _ShardState


class Sequences(StreamingDataset):
    """Packed sequences: each sample is {"tokens": int64 array (T,), "id": int}.

    The id is the sample's number in the dataset, over all its streams in the order of the federation file. Shards
    hold the number in the stream, which is ambiguous if there are several streams.

    An error of the threads that unpack shards (a full disk) is raised where the samples are read. In streaming
    0.13 it ends the epoch without an error, or blocks the reader of the dataset for ever, because a shard whose
    unpacking failed remains in the state of being prepared.
    """

    _failure: BaseException | None = None

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample by its number in the dataset, with int64 tokens (shards hold uint16 or uint32)."""
        sample = super().get_item(sample_id, retry)
        return {"tokens": sample["tokens"].astype(np.int64), "id": int(sample_id)}

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Unpack a shard. After a failure it is missing again, so a waiting thread retries and gets the error."""
        try:
            super().prepare_shard(shard_id, blocking)
        except BaseException:
            self._shard_states[shard_id] = _ShardState.REMOTE
            if hasattr(self, "_event"):
                self._event.set()  # streaming's threads check it before they continue to wait
            raise

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from super().__iter__()
        except Exception:
            if self._failure is None:
                raise
        if self._failure is not None:
            raise self._failure

    def _prepare_thread(self, it: Any) -> None:
        self._noting_failure(super()._prepare_thread, it)

    def _ready_thread(self, it: Any) -> None:
        self._noting_failure(super()._ready_thread, it)

    def _noting_failure(self, work: Callable[[Any], None], it: Any) -> None:
        try:
            work(it)
        except BaseException as error:
            self._failure = error
            it.on_exit()
            raise
