"""Photon's wall-time model: rounds of local steps and one exchange, for each topology of the exchange.

K sites, tau local steps a round, nu steps a second, S bytes of model, B bytes a second of the slowest link, zeta
bytes a second that the server aggregates, T rounds (arXiv 2411.02908, section on wall time; wording unverified):

    T_local = tau / nu
    T_comm  = K S / B                 parameter server: everything through the server's link
              (K - 1) S / B           all-reduce: each site sends to every other site
              2 S (K - 1) / (K B)     ring all-reduce: every site sends and receives 2 (K - 1) pieces of S / K
    T_agg   = K S / zeta
    total   = T (T_local + T_comm + T_agg)

Data-parallel training is the case tau = 1, with a gradient in place of the model.
"""

from typing import Literal, get_args

Topology = Literal["parameter server", "all-reduce", "ring all-reduce"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)


def communication_seconds(topology: Topology, sites: int, size: float, bandwidth: float) -> float:
    """T_comm of one exchange.

    Args:
        topology: topology of the exchange.
        sites: number of sites, K.
        size: bytes of the model, S.
        bandwidth: bytes a second of the slowest link, B.
    """
    if topology == "parameter server":
        return sites * size / bandwidth
    if topology == "all-reduce":
        return (sites - 1) * size / bandwidth
    return 2 * size * (sites - 1) / (sites * bandwidth)


def bytes_sent(topology: Topology, sites: int, size: float) -> float:
    """Bytes that all sites and the server together send in one exchange.

    A parameter server receives S from every site and sends S to every site.
    """
    if topology == "parameter server":
        return 2 * sites * size
    if topology == "all-reduce":
        return sites * (sites - 1) * size
    return 2 * (sites - 1) * size


def total_seconds(rounds: float, local: float, communication: float, aggregation: float = 0.0) -> float:
    """T (T_local + T_comm + T_agg), seconds."""
    return rounds * (local + communication + aggregation)
