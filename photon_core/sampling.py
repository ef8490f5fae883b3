"""Which sites take part in a round: K of P, uniformly, without replacement (Photon, Algorithm 1, line 4)."""

from collections.abc import Iterable

from photon_core.hashing import sha256_bytes


def sample_sites(sites: Iterable[str], k: int, seed: int, t: int) -> list[str]:
    """The K sites of round t, in the order of their names.

    Ranks every site by a hash of (seed, round, name) and takes the first K. Each subset is equally likely,
    every machine finds the same one, and a site that joins or leaves does not reshuffle the others.

    Raises:
        ValueError: there are fewer than k sites.
    """
    names = sorted(sites)
    if k > len(names):
        raise ValueError(f"cannot sample {k} of {len(names)} sites")
    ranked = sorted(names, key=lambda name: sha256_bytes(f"{seed}/{t}/{name}".encode()))
    return sorted(ranked[:k])
