"""Flower's FedAvg of the same shapes, classic and record-based. Runs in Flower's environment, prints one JSON
object.

    python flower_aggregate.py classic|records SITES SHAPES.json

Only the aggregation is timed: the arrays are already in memory, as when a server has received them.
"""

import json
import resource
import sys
import time
from pathlib import Path


def main(way: str, sites: int, shapes: dict[str, list[int]]) -> None:
    import numpy as np

    block = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32)

    def arrays(site: int) -> list[np.ndarray]:
        return [np.resize(block[site:], shape).copy() for shape in shapes.values()]  # no view of the block

    total = sites * 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if way == "classic":
        from flwr.server.strategy.aggregate import aggregate

        results = [(arrays(site), 100 + site) for site in range(sites)]
        start, worked = time.perf_counter(), time.process_time()
        aggregate(results)
    else:
        from flwr.app import ArrayRecord, MetricRecord, RecordDict
        from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

        records = [
            RecordDict(
                {
                    "arrays": ArrayRecord(arrays(site)),
                    "metrics": MetricRecord({"num-examples": 100 + site}),
                }
            )
            for site in range(sites)
        ]
        start, worked = time.perf_counter(), time.process_time()
        aggregate_arrayrecords(records, "num-examples")
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"seconds": seconds, "cpu_s": worked, "gb_s": total / seconds / 1e9, "peak_gib": peak / 2**30}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
