"""The dataset that training reads: streaming's own, with token ids in the type that torch wants.

Importing this module imports streaming and torch: only processes that train do so.
"""

from typing import Any

import numpy as np
from streaming import StreamingDataset


class Sequences(StreamingDataset):
    """Packed sequences: each sample is {"tokens": int64 array (T,), "id": int}.

    The id is the sample's number in the dataset, over all its streams in the order of the federation file. What
    the shards hold is its number in its stream, which is ambiguous when there are several; photon_core.data.trail
    finds the one from the other.
    """

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample by its number in the dataset, tokens widened to int64 (shards hold uint16 or uint32)."""
        sample = super().get_item(sample_id, retry)
        return {"tokens": sample["tokens"].astype(np.int64), "id": int(sample_id)}
