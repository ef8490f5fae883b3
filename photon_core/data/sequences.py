"""The dataset that training reads: streaming's own, with token ids in the type that torch wants.

Importing this module imports streaming and torch: only processes that train do so.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from streaming import StreamingDataset
from streaming.base.dataset import _ShardState


class Sequences(StreamingDataset):
    """Packed sequences: each sample is {"tokens": int64 array (T,), "id": int}.

    The id is the sample's number in the dataset, over all its streams in the order of the federation file. What
    the shards hold is its number in its stream, which is ambiguous when there are several; photon_core.data.trail
    finds the one from the other.

    An error of the threads that unpack shards (a full disk) is raised where the samples are read. In streaming
    0.13 it ends the epoch in silence, or leaves whoever reads or closes the dataset waiting for ever, because a
    shard whose unpacking failed stays one that is being prepared.
    """

    _failure: BaseException | None = None

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample by its number in the dataset, tokens widened to int64 (shards hold uint16 or uint32)."""
        sample = super().get_item(sample_id, retry)
        return {"tokens": sample["tokens"].astype(np.int64), "id": int(sample_id)}

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Unpack a shard. One that fails is missing again: whoever waits for it tries, and sees the error."""
        try:
            super().prepare_shard(shard_id, blocking)
        except BaseException:
            self._shard_states[shard_id] = _ShardState.REMOTE
            if hasattr(self, "_event"):
                self._event.set()  # what streaming's threads look at before they wait on
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
