"""Flower's simulation with trivial training. Runs in Flower's environment, prints one JSON object.

    python flower_rounds.py CLIENTS PARAMETERS ROUNDS

Every client gets the global model, adds a constant and returns it. FedAvg averages. Nothing is written to disk.
Seconds count from the start of this process's `main`, including imports of flwr and ray, for which a user waits.
"""

import json
import sys
import time
from itertools import pairwise

BLOCK = 1_000_000  # parameters of one array


def main(clients: int, parameters: int, rounds: int) -> None:
    start = time.perf_counter()
    import numpy as np
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    imported = time.perf_counter()
    client = ClientApp()

    @client.train()
    def train(message: Message, _context: Context) -> Message:
        arrays = [array + np.float32(1e-3) for array in message.content["arrays"].to_numpy_ndarrays()]
        content = RecordDict(
            {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1, "train_loss": 0.0})}
        )
        return Message(content=content, reply_to=message)

    server = ServerApp()
    ends: list[float] = []
    final: list[float] = []

    @server.main()
    def serve(grid: Grid, _context: Context) -> None:
        sizes = [BLOCK] * (parameters // BLOCK) + ([parameters % BLOCK] if parameters % BLOCK else [])
        arrays = ArrayRecord([np.zeros(size, np.float32) for size in sizes])
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)

        def mark(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            if server_round:  # 0 is the initial model
                ends.append(time.perf_counter())
                final[:] = [float(arrays.to_numpy_ndarrays()[0][0])]
            return MetricRecord({"round": server_round})

        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds, evaluate_fn=mark)

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    assert len(ends) == rounds, f"{len(ends)} of {rounds} rounds ended"
    assert abs(final[0] - rounds * 1e-3) < 1e-4, f"the clients' work is not in the model: {final[0]}"
    later = sorted(after - before for before, after in pairwise(ends))
    figures = {
        "clients": clients,
        "parameters": parameters,
        "rounds": rounds,
        "imports_s": imported - start,
        "first_round_s": ends[0] - start,
        "round_s": later[len(later) // 2] if later else None,
        "round_s_range": [later[0], later[-1]] if later else None,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
