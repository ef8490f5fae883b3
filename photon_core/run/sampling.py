"""Which sites take part in a round: K of P, without replacement (Photon, Algorithm 1, line 4)."""

from collections.abc import Iterable, Mapping, Sequence
from math import log

from photon_core.hashing import sha256_bytes
from photon_core.run.claims import data_tokens
from photon_core.run.line import TOKENS, last_updates, place_of
from photon_core.run.run import Run
from schemas.federation import Federation

__all__ = ["TOKENS", "sample_sites", "sampled_sites", "site_tokens"]


def sample_sites(
    sites: Iterable[str], k: int, seed: int, t: int, weights: Mapping[str, float] | None = None
) -> list[str]:
    """The K sites of round t, in the order of their names.

    Ranks every site by a hash of (seed, round, name) and takes the first K. Each subset is equally likely,
    every machine finds the same one, and a site that joins or leaves does not reshuffle the others.

    With weights the hash is a number u, uniform in (0, 1), and the rank is by -log(u) / weight (Efraimidis and
    Spirakis 2006): as if the K were drawn one after the other, each in proportion to its weight among those left.

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


def sampled_sites(run: Run, federation: Federation, t: int) -> list[str]:
    """The sites of round t, as the file says; paused ones are never among them.

    They are drawn for the round's place among the trained rounds that its model comes from: after a rollback from
    round 4 to 2, round 6 asks the sites that round 3 has asked.
    """
    names, weights = federation.active, None
    if federation.rounds.sampling == "tokens":
        weights = site_tokens(run, names, t, {site.name: site.data_tokens for site in federation.sites})
    return sample_sites(names, federation.sites_per_round, federation.seed, place_of(run, t), weights)


def site_tokens(
    run: Run, sites: Sequence[str], t: int, registered: Mapping[str, int | None] | None = None
) -> dict[str, float]:
    """Tokens that each site has prepared: as the federation file has registered them; of a site without, as its
    newest aggregated update before round t says, up to the median of the others (see `claims.data_tokens`)."""
    registered = registered or {}
    said = last_updates(run, t - 1) if t > 0 and run.round(t - 1) else {}
    claimed = {
        site: said[site].data_tokens
        for site in sites
        if site in said and said[site].data_tokens > 0 and not registered.get(site)
    }
    return data_tokens(list(sites), registered, claimed)
