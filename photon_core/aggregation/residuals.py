"""Residuals: key layers that a federation's mean represents least, on their way to a member that they fit.

What the mean represents least goes up. What comes from below and fits another member goes down, at every node to
one member, until it ends at a leaf. These are PartitionResiduals and RouteResiduals of Algorithm 1 (Iacob et al.
2024, arXiv 2405.14446, lines 18 and 8). The paper gives no more than the names: all that they do here is a choice
of this project. Similarity is the cosine of whole key layers.

A residual's origin is a path of names. As long as it comes from below, it begins with a member of the node that
holds it: each node that takes it puts its member's name in front, so that none has to know what is above it.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from schemas.manifests import FileEntry, Residual

Policy = Literal["off", "region", "tree"]  # worldlm.residuals
Why = Literal[
    "residuals are off", "it fits no other member", "there is no other member", "absent", "over the limit"
]


@dataclass(frozen=True)
class Offer:
    """A key layer that may go to another node.

    Args:
        residual: as this node names it.
        members: cosine with each member's newest key layer; with the federation's own where it has none yet.
        mean: cosine with the federation's new key layer; `route` does not need it.
        from_above: flag: the parent has sent it, so that no member is on the path to its origin.
    """

    residual: Residual
    members: Mapping[str, float]
    mean: float = 0.0
    from_above: bool = False

    @property
    def target(self) -> str | None:
        """The member that it fits best, lower name first; never the one that it comes from."""
        via = "" if self.from_above else self.residual.origin[0]
        return max(sorted(self.members.keys() - {via}), key=lambda name: self.members[name], default=None)

    @property
    def best(self) -> float:
        """Cosine with the target; -1 where there is none."""
        return -1.0 if self.target is None else self.members[self.target]

    @property
    def fits_another(self) -> bool:
        """Whether its target represents it at least as well as the mean does."""
        return self.target is not None and self.best >= self.mean


class Dropped(NamedTuple):
    """A residual that ends here without being taken, and why."""

    residual: Residual
    why: Why


class Partition(NamedTuple):
    """What a round leaves of residuals, in place of those of the round before.

    Args:
        up: for the parent; at most one a layer.
        down: for the members; at most one a layer and member.
        dropped: of what the members have handed up.
    """

    up: list[Residual]
    down: list[Residual]
    dropped: list[Dropped]


NOTHING = Partition([], [], [])


class Routing(NamedTuple):
    """What is sent to the members.

    Args:
        members: name -> residuals as the member names them, at most one a layer. It pools them when it enters; a
            federation routes them, too.
        dropped: all others.
    """

    members: dict[str, list[Residual]]
    dropped: list[Dropped]


def picked(layer: str, member: str, born: int, folder: str, files: Sequence[FileEntry]) -> Residual:
    """A member's key layer as a residual, which has crossed one link. Arguments: the fields of Residual."""
    return Residual(layer=layer, origin=[member], born=born, hops=1, folder=folder, files=list(files))


def handed_up(residual: Residual, member: str) -> Residual:
    """A residual that a member hands up, as the node above it names it."""
    return residual.model_copy(update={"origin": [member, *residual.origin], "hops": residual.hops + 1})


def row_name(residual: Residual) -> str:
    """What a residual is called among the rows of a pool."""
    return f"{'/'.join(residual.origin)}@{residual.born}"


def in_order(residuals: Iterable[Residual]) -> list[Residual]:
    """By layer, origin and round: the order of a pool's rows."""
    return sorted(residuals, key=_place)


def partition(rows: Iterable[Offer], handed: Iterable[Offer], policy: Policy, is_root: bool) -> Partition:
    """What of a round's key layers goes up, and what goes down (PartitionResiduals).

    Of each layer the member's row with the lowest cosine to the mean is picked. Under `tree` it goes up, and the
    root picks none. Under `region` it goes down if it fits another member, else nowhere.

    A residual that a member hands up goes down if it fits another member, and always at the root. Else it goes up
    under `tree`, nowhere under `region`.

    Of too many, those go up that fit the mean least, and those down that fit their target most; ties by origin.

    Args:
        rows: the members' own key layers, named by `picked`.
        handed: residuals of the members that are federations, named by `handed_up`.
        policy: the node's.
        is_root: flag: it has no parent.
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
    """Which member gets which residual (RouteResiduals).

    A residual goes to its target; nowhere, if that is not there, or if another one of the layer fits it better.

    Args:
        offers: what `partition` has left to go down in the node's last round; in the first round of a call, what
            the parent has sent, too.
        taking: names of the members that take part in the round.
        policy: the node's. Under `off`, who gives none takes none.
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
    """Of each group the offer of the lowest rank; ties by origin, then by round."""
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
