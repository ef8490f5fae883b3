"""What the moments of an honest optimizer keep; an update whose moments do not is left out by name.

Of AdamW, whatever its gradients were, m^2 <= v / c in every element, by Cauchy's and Schwarz's inequality, with
c = (1 - beta2) (1 - beta1^2 / beta2) / (1 - beta1)^2. Zeros keep it, and so do weighted means, medians and
trimmed means of what keeps it. Where the betas have changed since, the moments that a round begins with may exceed
it: then by their own largest m^2 / v, since m^2 / v after a round is at most a mean of that and 1 / c.

Sizes have no such bound: they are held to the sites' median and to the round before. Moments grow with local steps
where they begin small, so a site that makes more steps than most may be larger by what the steps explain.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import median

import numpy as np
from numpy.typing import NDArray

from photon_core.errors import UpdateRejected
from schemas.manifests import RoundManifest
from schemas.sections.local import Optimizer

Float32 = NDArray[np.float32]

FIRST, SECOND = "exp_avg", "exp_avg_sq"  # AdamW's m and v
ROUNDING = 2.0**-5  # of m^2 / v: moments that are bfloat16, of the round before and of this one, and sums
TINY = np.float32(1e-36)  # squares of float32 are lost below
RATIO_LIMIT = 1e30  # of what a manifest tells
CACHED = 1 << 15  # elements
SITES = 3  # at least, for a median that one of them does not move
# How many times as large as usual a site's moments may be: about twice the most that was measured of a tensor
# among six honest sites of unlike texts (prose, code, digits, bytes; 1 to 20 local steps, batches of 1 to 8, with
# and without clipping, a late joiner, the first rounds, a learning rate that diverges): 6.4 of exp_avg, 2.9 of
# exp_avg_sq, 3.5 of momentum. In the default recipe 3.0, 1.5 and 2.2.
FACTORS = {FIRST: 12.0, SECOND: 6.0, "momentum": 8.0}
SHARE = 1e-4  # of a kind's size; the smallest tensor had 8e-3, in a divergence 2e-4
ALONE = 100.0  # times the round before's, where nothing else is known; 13 in a divergence


def allowed_ratio(optimizer: Optimizer, t: int, last: RoundManifest | None) -> float:
    """Most that m^2 / v of an element can be in round t, rounding aside; infinity where that is not known.

    Args:
        optimizer: of the federation file.
        t: the round.
        last: the round before, if the sites went on from its moments.
    """
    first, second = optimizer.betas
    if first**2 >= second or (last is None and t > 1):  # in the second case, of moments that sites have kept
        return math.inf
    most = (1 - first) ** 2 / ((1 - second) * (1 - first**2 / second))
    if last is None:
        return most
    left = first**2 / second  # of what a round began with, after one step
    return max(most, left * last.moment_ratio + (1 - left) * most) if last.moment_ratio else math.inf


def largest_ratios(first: Float32, second: Float32) -> Float32:
    """The largest m^2 / v of each row."""
    with np.errstate(over="ignore"):
        squares = first * first
        squares /= np.maximum(second, 0) + TINY
    found: Float32 = squares.max(axis=-1, initial=0)
    return found


def usual_ratio(first: Float32, second: Float32) -> float:
    """What m^2 / v of the mean is held to where it has no other bound.

    Args:
        first, second: moments of the same elements at every site, a row each.

    Returns:
        the median of the sites' largest ratios, at least 1; infinity of fewer than SITES.
    """
    return max(1.0, float(np.median(largest_ratios(first, second)))) if len(first) >= SITES else math.inf


def check_ratios(sites: Sequence[str], name: str, first: Float32, second: Float32, allowed: float) -> None:
    """Refuse a first moment that is too large for its second one.

    Args:
        sites: of the rows.
        name: the parameter's.
        first, second: its moments at each site.
        allowed: as `allowed_ratio` gives it.
    """
    if allowed == math.inf or not _beyond(first, second, np.float32(allowed * (1 + ROUNDING))):
        return
    found = largest_ratios(first, second)
    worst = int(np.argmax(found))
    raise UpdateRejected(
        sites[worst],
        f"the optimizer's moment '{FIRST}.{name}' is too large for its '{SECOND}': its square reaches "
        f"{found[worst]:.4g} times that, and at most {allowed:.4g} times can come of any gradients",
    )


def _beyond(first: Float32, second: Float32, most: np.float32) -> bool:
    """Whether any m^2 is over so many v; in blocks that a core's cache holds."""
    scratch = np.empty((2, min(CACHED, first.shape[1])), np.float32)
    for row, start in product(range(len(first)), range(0, first.shape[1], CACHED)):
        m, v = first[row, start : start + CACHED], second[row, start : start + CACHED]
        square, limit = scratch[:, : len(m)]
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(m, m, out=square)
            np.multiply(v, most, out=limit)
            np.subtract(square, limit, out=square)
        if not square.max() <= TINY:  # NaN, too: both are infinite
            return True
    return False


def growths(optimizer: Optimizer, steps: Sequence[int]) -> dict[str, list[float]]:
    """Kind of moment -> how many times as large as at the sites' median number of steps an honest site's may be.

    From zeros, k steps of one gradient bring a running mean with the decay beta to 1 - beta^k of it.

    Args:
        optimizer: of the federation file.
        steps: of every site, as it says; the file bounds them.
    """
    usual = median(steps)

    def growth(beta: float) -> list[float]:
        return [max(1.0, (1 - beta**count) / (1 - beta**usual)) for count in steps]

    first, second = optimizer.betas
    return {
        FIRST: growth(first),
        SECOND: [math.sqrt(found) for found in growth(second)],  # its size is the root of a sum
        "momentum": growth(optimizer.momentum),
    }


def check_sizes(
    sites: Sequence[str],
    sizes: Mapping[str, Sequence[float]],
    last: Mapping[str, float],
    growth: Mapping[str, Sequence[float]],
) -> None:
    """Refuse moments whose size is out of line.

    Of SITES or more, with their median and with the round before, whichever is nearer; a moment that is next to
    nothing at most sites counts as a SHARE of all of its kind. Of fewer, all of a kind with the round before.

    Args:
        sites: their names.
        sizes: moment -> size at each site, in their order.
        last: moment -> the sites' median in the round before; empty where that is not known.
        growth: as `growths` gives it, in the sites' order.

    Raises:
        UpdateRejected: naming the site that is furthest out.
    """
    if len(sites) < SITES:
        _check_few(sites, sizes, last)
        return
    usual = {name: median(found) for name, found in sizes.items()}
    floors = {kind: SHARE * size for kind, size in _together(usual).items()}
    worst = (0.0, "", "", 0.0)
    for name, of_sites in sizes.items():
        here, before = max(usual[name], floors[_kind(name)]), last.get(name, 0.0)
        for site, size, grown in zip(sites, of_sites, growth[_kind(name)], strict=True):
            over = min(_over(size, here), _over(size, before)) / (FACTORS[_kind(name)] * grown)
            worst = max(worst, (over, name, site, size))
    most, name, site, size = worst
    if most > 1:
        also = f" and the round before's {last[name]:.4g}" if last.get(name) else ""
        factor = FACTORS[_kind(name)] * growth[_kind(name)][sites.index(site)]
        times = f"over {factor:.4g} times the sites' median {usual[name]:.4g}{also}"
        reason = f"its size is {size:.4g}, {times}"
        raise UpdateRejected(site, f"the optimizer's moment '{name}' is out of line: {reason}")


def _check_few(sites: Sequence[str], sizes: Mapping[str, Sequence[float]], last: Mapping[str, float]) -> None:
    before = _together(last)
    for number, site in enumerate(sites):
        for kind, size in _together({name: found[number] for name, found in sizes.items()}).items():
            if before.get(kind) and size > ALONE * before[kind]:
                reason = f"their size is {size:.4g}, over {ALONE:g} times the round before's {before[kind]:.4g}"
                raise UpdateRejected(site, f"the optimizer's moments '{kind}' are out of line: {reason}")


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _together(sizes: Mapping[str, float]) -> dict[str, float]:
    """Kind of moment -> the size of all of them."""
    kinds: dict[str, list[float]] = {}
    for name, size in sizes.items():
        kinds.setdefault(_kind(name), []).append(size)
    return {kind: math.hypot(*found) for kind, found in kinds.items()}


def _over(size: float, usual: float) -> float:
    """How many times as large."""
    return size / usual if usual else math.inf if size else 0.0


def medians(sizes: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """moment -> the sites' median size, for the next round."""
    return {name: median(found) for name, found in sizes.items()}
