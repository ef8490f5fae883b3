"""Bounds on the moments of an honest optimizer. A site whose moments violate them is excluded by name.

AdamW's moments satisfy m^2 <= v / c in every element, for any gradients, by Cauchy's and Schwarz's inequality,
with c = (1 - beta2) (1 - beta1^2 / beta2) / (1 - beta1)^2. Zeros satisfy it, and so do weighted means, medians and
trimmed means of moments that satisfy it. If the betas have changed, the moments at the start of a round may exceed
the bound. Then their own largest m^2 / v replaces it, since m^2 / v after a round is at most a mean of that and 1
/ c.

Sizes have no such bound. They are compared with the sites' median and with the previous round. Moments that start
small grow with local steps. So a site that makes more steps than most may have larger moments, as far as the steps
explain it.
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
ROUNDING = 2.0**-5  # of m^2 / v: bfloat16 moments, of the previous round and of this one, and sums
TINY = np.float32(1e-36)  # squares below it are lost in float32
RATIO_LIMIT = 1e30  # of a ratio in a manifest
CACHED = 1 << 15  # elements
SITES = 3  # least number for a median that one site cannot move
# Factors by which a site's moments may exceed the usual size: about twice the largest that was measured of a
# tensor among six honest sites of unlike texts (prose, code, digits, bytes; 1 to 20 local steps, batches of 1 to
# 8, with and without clipping, a late joiner, the first rounds, a learning rate that diverges): 6.4 for exp_avg,
# 2.9 for exp_avg_sq, 3.5 for momentum. In the default recipe they were 3.0, 1.5 and 2.2.
FACTORS = {FIRST: 12.0, SECOND: 6.0, "momentum": 8.0}
SHARE = 1e-4  # of the size of a kind; the smallest tensor had 8e-3, in a divergence 2e-4
ALONE = 100.0  # times the previous round's size, if nothing else is known; 13 in a divergence


def allowed_ratio(optimizer: Optimizer, t: int, last: RoundManifest | None) -> float:
    """The largest possible m^2 / v of an element in round t, rounding aside; infinity if it is unknown.

    Args:
        optimizer: section of the federation file.
        t: number of the round.
        last: previous round, if the sites started from its moments; else None.
    """
    first, second = optimizer.betas
    if first**2 >= second or (last is None and t > 1):  # in the second case the sites start from their own moments
        return math.inf
    most = (1 - first) ** 2 / ((1 - second) * (1 - first**2 / second))
    if last is None:
        return most
    left = first**2 / second  # share of the initial ratio that is left after one step
    return max(most, left * last.moment_ratio + (1 - left) * most) if last.moment_ratio else math.inf


def largest_ratios(first: Float32, second: Float32) -> Float32:
    """The largest m^2 / v of each row."""
    with np.errstate(over="ignore"):
        squares = first * first
        squares /= np.maximum(second, 0) + TINY
    largest: Float32 = squares.max(axis=-1, initial=0)
    return largest


def usual_ratio(first: Float32, second: Float32) -> float:
    """The bound on m^2 / v of the mean if there is no other bound.

    Args:
        first, second: moments of the same elements at every site, a row each.

    Returns:
        the median of the sites' largest ratios, at least 1; infinity for fewer than SITES sites.
    """
    return max(1.0, float(np.median(largest_ratios(first, second)))) if len(first) >= SITES else math.inf


def check_ratios(sites: Sequence[str], name: str, first: Float32, second: Float32, allowed: float) -> None:
    """Refuse a first moment that is too large for its second moment.

    Args:
        sites: names of the sites, in the order of the rows.
        name: name of the parameter.
        first, second: moments of the parameter at each site.
        allowed: largest possible ratio, from `allowed_ratio`.

    Raises:
        UpdateRejected: the error names the site with the largest ratio.
    """
    if allowed == math.inf or not _beyond(first, second, np.float32(allowed * (1 + ROUNDING))):
        return
    ratios = largest_ratios(first, second)
    worst = int(np.argmax(ratios))
    raise UpdateRejected(
        sites[worst],
        f"the optimizer's moment '{FIRST}.{name}' is too large for its '{SECOND}': its square reaches "
        f"{ratios[worst]:.4g} times that, and gradients can give at most {allowed:.4g} times",
    )


def _beyond(first: Float32, second: Float32, most: np.float32) -> bool:
    """Whether any m^2 is larger than `most` times v; computed in blocks that fit into a core's cache."""
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
    """Kind of moment -> each site's allowed size, relative to a site with the median number of steps.

    Starting from zeros, k steps of one gradient bring a running mean with decay beta to 1 - beta^k of that
    gradient.

    Args:
        optimizer: section of the federation file.
        steps: local steps that each site reports; the file bounds them.
    """
    usual = median(steps)

    def growth(beta: float) -> list[float]:
        return [max(1.0, (1 - beta**count) / (1 - beta**usual)) for count in steps]

    first, second = optimizer.betas
    return {
        FIRST: growth(first),
        SECOND: [math.sqrt(factor) for factor in growth(second)],  # its size is the root of a sum
        "momentum": growth(optimizer.momentum),
    }


def check_sizes(
    sites: Sequence[str],
    sizes: Mapping[str, Sequence[float]],
    last: Mapping[str, float],
    growth: Mapping[str, Sequence[float]],
) -> None:
    """Refuse moments whose size is out of line.

    With SITES sites or more, a size is compared with the sites' median and with the previous round; the nearer one
    counts. A moment that is close to zero at most sites counts as a SHARE of all of its kind. With fewer sites,
    all moments of a kind together are compared with the previous round.

    Args:
        sites: names of the sites.
        sizes: sizes at each site by moment, in the order of `sites`.
        last: median sizes of the previous round by moment; empty if unknown.
        growth: allowed growth by kind, from `growths`, in the order of `sites`.

    Raises:
        UpdateRejected: the error names the site that is furthest out.
    """
    if len(sites) < SITES:
        _check_few(sites, sizes, last)
        return
    usual = {name: median(of_sites) for name, of_sites in sizes.items()}
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
        for kind, size in _together({name: of_sites[number] for name, of_sites in sizes.items()}).items():
            if before.get(kind) and size > ALONE * before[kind]:
                reason = f"their size is {size:.4g}, over {ALONE:g} times the round before's {before[kind]:.4g}"
                raise UpdateRejected(site, f"the optimizer's moments '{kind}' are out of line: {reason}")


def _kind(name: str) -> str:
    return name.partition(".")[0]


def _together(sizes: Mapping[str, float]) -> dict[str, float]:
    """Kind of moment -> the size of all moments of that kind together."""
    kinds: dict[str, list[float]] = {}
    for name, size in sizes.items():
        kinds.setdefault(_kind(name), []).append(size)
    return {kind: math.hypot(*of_kind) for kind, of_kind in kinds.items()}


def _over(size: float, usual: float) -> float:
    """The size relative to the usual one."""
    return size / usual if usual else math.inf if size else 0.0


def medians(sizes: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Moment -> the sites' median size, for the next round."""
    return {name: median(of_sites) for name, of_sites in sizes.items()}
