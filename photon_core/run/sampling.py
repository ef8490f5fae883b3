"""Sampling of the members of a round: K of P, without replacement (Photon, Algorithm 1, line 4)."""

from collections.abc import Iterable, Mapping, Sequence
from math import log
from statistics import median

from photon_core.hashing import sha256_bytes
from photon_core.run.line import TOKENS, last_updates, place_of
from photon_core.run.members import active
from photon_core.run.run import Run
from schemas.federation import Federation

__all__ = ["TOKENS", "member_tokens", "sample_members", "sampled_members"]


def sample_members(
    sites: Iterable[str], k: int, seed: int, t: int, weights: Mapping[str, float] | None = None
) -> list[str]:
    """The K sites of round t, in the order of their names.

    All sites are ranked by a hash of (seed, round, name), and the first K are taken. Each subset is equally
    likely, every machine computes the same one, and a site that joins or leaves does not reshuffle the others.

    With weights the hash is a number u, uniform in (0, 1), and the rank is by -log(u) / weight (Efraimidis and
    Spirakis 2006): as if the K were drawn one after the other, each in proportion to its weight among the rest.

    Raises:
        ValueError: there are fewer than k sites.
    """
    names = sorted(sites)
    if k > len(names):
        raise ValueError(f"cannot sample {k} of {len(names)} sites")
    digests = {name: sha256_bytes(f"{seed}/{t}/{name}".encode()) for name in names}
    if weights is None:
        ranked = sorted(names, key=lambda name: digests[name])
    else:
        ranked = sorted(names, key=lambda name: -log((int(digests[name], 16) + 0.5) / 2**256) / weights[name])
    return sorted(ranked[:k])


def sampled_members(run: Run, federation: Federation, t: int) -> list[str]:
    """The sampled members of round t, without paused ones.

    They are drawn for the round's place among the trained rounds that its model comes from: after a rollback from
    round 4 to 2, round 6 samples the members that round 3 has sampled.
    """
    names, weights = [one.name for one in active(federation)], None
    if federation.rounds.sampling == "tokens":
        weights = member_tokens(run, names, t, {one.name: one.data_tokens for one in active(federation)})
    return sample_members(names, federation.sites_per_round, federation.seed, place_of(run, t), weights)


def member_tokens(
    run: Run, names: Sequence[str], t: int, registered: Mapping[str, int | None] | None = None
) -> dict[str, float]:
    """Tokens that each member has prepared. The federation file's registration counts. For a member without one,
    its newest aggregated update before round t counts, up to the median of the others (see `data_tokens`)."""
    registered = registered or {}
    last = last_updates(run, t - 1) if t > 0 and run.round(t - 1) else {}
    claimed = {
        name: last[name].data_tokens
        for name in names
        if name in last and last[name].data_tokens > 0 and not registered.get(name)
    }
    return data_tokens(names, registered, claimed)


def data_tokens(
    names: Sequence[str], registered: Mapping[str, int | None], claimed: Mapping[str, float]
) -> dict[str, float]:
    """Each member's weight for sampling by tokens; equal weights while no member's tokens are known.

    Args:
        names: names of the members.
        registered: tokens in the federation file, which always count.
        claimed: tokens that the members claim; they count up to the median of the others' numbers.
    """
    known = {name: float(registered.get(name) or claimed.get(name, 0.0)) for name in names}
    known = {name: tokens for name, tokens in known.items() if tokens > 0}
    bounded = {}
    for name, tokens in known.items():
        others = [known[other] for other in known if other != name]
        bounded[name] = tokens if registered.get(name) or not others else min(tokens, median(others))
    usual = median(bounded.values()) if bounded else 1.0
    return {name: bounded.get(name, usual) for name in names}
