"""Residuals: key layers that a federation's mean represents least, sent to a member that they fit.

The key layer that the mean represents least goes up. One that comes from below and fits another member goes down,
at each node to one member, until it reaches a leaf. These are PartitionResiduals and RouteResiduals of Algorithm 1
(Iacob et al. 2024, arXiv 2405.14446, lines 18 and 8). The paper gives only their names, so their definitions here
are a choice of this project. Similarity is the cosine of whole key layers.

A residual's origin is a path of names. While a residual goes up, the path begins with a member of the node that
holds it: each node prepends its member's name. So no node needs to know the nodes above it.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from schemas.manifests import FileEntry, Residual

Policy = Literal["off", "region", "tree"]  # worldlm.residuals
MOST_RATIO = 2.0  # of two norms of key layers that come from one model (a choice)
Why = Literal[
    "residuals are off",
    "it fits no other member",
    "there is no other member",
    "absent",
    "over the limit",
    "out of line",
]


@dataclass(frozen=True)
class Offer:
    """A key layer that may go to another node.

    Args:
        residual: residual, with the origin as this node names it.
        members: cosine with each member's newest key layer.
        mean: cosine with the federation's new key layer; `route` does not need it.
        from_above: flag: the parent has sent it, so no member is on the path to its origin.
    """

    residual: Residual
    members: Mapping[str, float]
    mean: float = 0.0
    from_above: bool = False

    @property
    def target(self) -> str | None:
        """The member that it fits best, the lower name in a tie; never the member that it comes from."""
        via = "" if self.from_above else self.residual.origin[0]
        return max(sorted(self.members.keys() - {via}), key=lambda name: self.members[name], default=None)

    @property
    def best(self) -> float:
        """Cosine with the target; -1 if there is none."""
        return -1.0 if self.target is None else self.members[self.target]

    @property
    def fits_another(self) -> bool:
        """Whether its target is at least as similar to it as the mean."""
        return self.target is not None and self.best >= self.mean


class Dropped(NamedTuple):
    """A residual that ends at this node unused, and the reason."""

    residual: Residual
    why: Why


class Partition(NamedTuple):
    """The residuals of a round. They replace those of the previous round.

    Args:
        up: residuals for the parent, at most one of each layer.
        down: residuals for the members, at most one of each layer for each member.
        dropped: unused residuals among those that members handed up.
    """

    up: list[Residual]
    down: list[Residual]
    dropped: list[Dropped]


NOTHING = Partition([], [], [])


class Routing(NamedTuple):
    """The residuals that are sent to the members.

    Args:
        members: name -> residuals for that member, at most one of each layer. The member adds them to its pools at
            entry; a federation also routes them.
        dropped: all other residuals.
    """

    members: dict[str, list[Residual]]
    dropped: list[Dropped]


def picked(layer: str, member: str, born: int, folder: str, files: Sequence[FileEntry]) -> Residual:
    """A member's key layer as a residual that has crossed one link. The arguments are fields of Residual."""
    return Residual(layer=layer, origin=[member], born=born, hops=1, folder=folder, files=list(files))


def handed_up(residual: Residual, member: str) -> Residual:
    """A residual that a member hands up, with its origin as the parent names it."""
    return residual.model_copy(update={"origin": [member, *residual.origin], "hops": residual.hops + 1})


def row_name(residual: Residual) -> str:
    """The name of a residual among the rows of a pool."""
    return f"{'/'.join(residual.origin)}@{residual.born}"


def is_in_line(square: float, mean: float) -> bool:
    """Whether a residual's norm is near the mean's.

    A cosine does not depend on norms. Without this limit, one large row would replace the layer of its receiver.

    Args:
        square: squared norm of the residual.
        mean: squared norm of the federation's new layer.
    """
    return mean / MOST_RATIO**2 <= square <= mean * MOST_RATIO**2


def in_order(residuals: Iterable[Residual]) -> list[Residual]:
    """Residuals in the order of a pool's rows: by layer, origin and round."""
    return sorted(residuals, key=_place)


def partition(rows: Iterable[Offer], handed: Iterable[Offer], policy: Policy, is_root: bool) -> Partition:
    """The residuals of a round that go up, and those that go down (PartitionResiduals).

    Of each layer, the member's row with the lowest cosine to the mean is picked. Under `tree` it goes up, and the
    root picks none. Under `region` it goes down if it fits another member, and is dropped otherwise.

    A residual that a member hands up goes down at the root, and elsewhere if it fits another member. Otherwise it
    goes up under `tree`, and is dropped under `region`.

    Over the limit, the residuals least similar to the mean go up, and those most similar to their target go down.
    Ties are resolved by origin.

    Args:
        rows: key layers of the members, from `picked`.
        handed: residuals of members that are federations, from `handed_up`.
        policy: policy of the node.
        is_root: flag: the node has no parent.
    """
    handed = list(handed)
    if policy == "off":
        return Partition([], [], [Dropped(offer.residual, "residuals are off") for offer in handed])
    picks = [] if policy == "tree" and is_root else _limited(rows, _layer, _least_represented)
    falling = [offer for offer in handed if is_root or offer.fits_another]
    rising = [*picks, *(offer for offer in handed if offer not in falling)] if policy == "tree" else []
    if policy == "region":
        falling += [offer for offer in picks if offer.fits_another]
    up, down = _limited(rising, _layer, _least_represented), _limited(falling, _layer_and_target, _best_fitting)
    dropped = [
        Dropped(offer.residual, "over the limit" if offer in rising + falling else "it fits no other member")
        for offer in handed
        if offer not in up + down
    ]
    return Partition(_residuals(up), _residuals(down), dropped)


def route(offers: Iterable[Offer], taking: Iterable[str], policy: Policy) -> Routing:
    """The residuals that each member gets (RouteResiduals).

    A residual goes to its target. It is dropped if the target takes no part in the round, or if another residual
    of the layer fits the target better.

    Args:
        offers: residuals that go down since the node's last round; in the first round of a call, also those that
            the parent has sent.
        taking: names of the members that take part in the round.
        policy: policy of the node. Under `off`, a node neither gives nor takes residuals.
    """
    offers, there = list(offers), set(taking)
    if policy == "off":
        return Routing({}, [Dropped(offer.residual, "residuals are off") for offer in offers])
    kept = _limited((offer for offer in offers if offer.target in there), _layer_and_target, _best_fitting)
    members: dict[str, list[Residual]] = {}
    for target in sorted({str(offer.target) for offer in kept}):
        members[target] = [_sent(residual) for residual in _residuals(o for o in kept if o.target == target)]
    return Routing(members, [Dropped(offer.residual, _why(offer, there)) for offer in offers if offer not in kept])


def _why(offer: Offer, there: set[str]) -> Why:
    if offer.target is None:
        return "there is no other member"
    return "over the limit" if offer.target in there else "absent"


def _sent(residual: Residual) -> Residual:
    return residual.model_copy(update={"hops": residual.hops + 1})


def _limited(
    offers: Iterable[Offer], group: Callable[[Offer], Hashable], rank: Callable[[Offer], float]
) -> list[Offer]:
    """The offer of the lowest rank in each group; ties are resolved by origin, then by round."""
    first: dict[Hashable, Offer] = {}
    for offer in sorted(offers, key=lambda offer: (rank(offer), *_place(offer.residual))):
        first.setdefault(group(offer), offer)
    return list(first.values())


def _layer(offer: Offer) -> str:
    return offer.residual.layer


def _layer_and_target(offer: Offer) -> tuple[str, str | None]:
    return offer.residual.layer, offer.target


def _least_represented(offer: Offer) -> float:
    return offer.mean


def _best_fitting(offer: Offer) -> float:
    return -offer.best


def _residuals(offers: Iterable[Offer]) -> list[Residual]:
    return in_order(offer.residual for offer in offers)


def _place(residual: Residual) -> tuple[str, list[str], int]:
    return residual.layer, residual.origin, residual.born
