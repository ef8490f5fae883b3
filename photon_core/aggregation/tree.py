"""Aggregation by regions: servers that read a few sites each compute the mean of many sites.

A region's mean is committed like an update of all its sites (with the sum of their tokens). The root gives it the
sum of its sites' weights. So a federation of federations is the same step, repeated. The mean of the regions'
means equals the mean of the sites, to float32 rounding, for every mean that is linear in the sites: with weights
by tokens, uniform or FedNova's, and with bounded norms. Medians and trimmed means need every site in one place.
The steps communicate through the store only. A finished step is found by the hash of its inputs, so each step is
idempotent, and may run on any machine or be killed.

A site's cosine with the global mean needs more than the site's own region. Once every region's mean is committed,
each region reads its sites a second time, together with all the means, and commits the cosines.
"""

import json
import math
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace

from photon_core.aggregation.aggregate import Aggregate, base_of, sources_of
from photon_core.aggregation.checks import check_manifest
from photon_core.aggregation.engine.inputs import DEFAULT_LIMITS, Limits, Pass, Result
from photon_core.aggregation.engine.streaming import run_pass
from photon_core.aggregation.rules import Rules, WeightedMean
from photon_core.aggregation.weights import Shares
from photon_core.errors import CorruptFile, PhotonError, StoreConflict, UpdateRejected
from photon_core.hashing import canonical_json, sha256_bytes
from photon_core.run.members import ANY_WORK, Work
from photon_core.run.paths import Place, PlaceKind
from photon_core.run.provenance import versions
from photon_core.run.run import ATTEMPTS_LIMIT, Run
from photon_core.run.updates import files_of_update
from schemas.manifests import PartialManifest, UpdateManifest, UpdateRef
from schemas.sections.aggregation import Aggregation
from schemas.sections.server import ALIKE, Server

MEAN = Server()  # fedavg with lr 1: the new model is the mean, bit for bit
CODEC = "plain"
COSINES_LIMIT = 1 << 20  # bytes
MOST_COSINE = 1.001  # 1, and a margin for rounding
TRIES = 3  # for a region whose committed files turn out to be damaged

Updates = Mapping[str, UpdateManifest]


def regions(settings: Aggregation, sampled: Sequence[str]) -> dict[int, list[str]]:
    """Number from 1 -> the region's sites, in the order of names; empty if one server reads all sites.

    Regions depend on the sampled sites, not on the committed updates: a site that drops out changes its own region
    only.
    """
    if settings.tree_above is None or len(sampled) <= settings.tree_above:
        return {}
    names, count = sorted(sampled), -(-len(sampled) // settings.fan_out)
    ends = [len(names) * n // count for n in range(count + 1)]
    return {n: names[ends[n - 1] : ends[n]] for n in range(1, count + 1)}


class Tree:
    """The aggregation of one round by regions.

    Args:
        run, t: run and round; the sites started from round t-1's model.
        groups: sites by region, from `regions`.
        updates: committed update of each site; a region without any is skipped.
        server: server section, with weights, mean and optimizer.
        most: maximum work of a site in a round.
        limits: resources of a pass.

    Raises:
        UpdateRejected: one site's manifest is bad; drop that site and start over.
    """

    def __init__(
        self,
        run: Run,
        t: int,
        groups: Mapping[int, Sequence[str]],
        updates: Updates,
        server: Server,
        most: Work = ANY_WORK,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        base = base_of(run, t)
        if server.mean in ALIKE:
            raise PhotonError(f"a {server.mean} mean needs every site in one place: drop aggregation.tree_above")
        self.run, self.t, self.base, self.updates, self.server = run, t, base, updates, server
        committed = {n: [site for site in sites if site in updates] for n, sites in groups.items()}
        self.groups = {n: sites for n, sites in committed.items() if sites}
        self.most, self.limits = most, limits
        for site in self._sites():  # the shares depend on the manifests, before any region is read
            check_manifest(run, base, t, site, updates[site], most)
        self._known: dict[int, tuple[Place, PartialManifest]] = {}

    def partial(self, region: int, again: bool = False) -> tuple[Place, PartialManifest]:
        """The region's mean: its place and manifest. It is committed now, unless it was before.

        Args:
            region: number of the region.
            again: flag: compute it again, because the files of the committed one are damaged.

        Raises:
            UpdateRejected: one site's update is bad; drop that site and start over.
        """
        if region not in self._known or again:
            self._known[region] = self._find_or_make(region, again)
        return self._known[region]

    def compare(self, region: int) -> dict[str, float]:
        """The second look: cosine/<site> of the region's sites with the global mean, committed now or before."""
        partials = {n: self.partial(n) for n in self.groups}
        place, mine = partials[region]
        key = sha256_bytes(
            canonical_json(sorted(self.run.partial_sha256(where) for where, _ in partials.values()))
        )
        place = replace(place, kind=PlaceKind.COSINES, content=key[:16])
        names = {f"cosine/{site}" for site in mine.parts}
        if (committed := self._cosines(place, names)) is not None:
            return committed
        means = {partial.site: partial for _, partial in partials.values()}
        sites = {site: self.updates[site] for site in mine.parts}
        shares = {**self._root_shares(partials), **dict.fromkeys(sites, 0.0)}
        result = self._pass({**means, **sites}, shares, None)
        cosines = {name: result.norms[name] for name in sorted(names)}
        with suppress(StoreConflict):  # the object there has the same numbers, from the same bytes, or is invalid
            self.run.commit(place, canonical_json(cosines) + b"\n")
        return cosines

    def _cosines(self, place: Place, names: Set[str]) -> dict[str, float] | None:
        """The committed cosines; None if there are none, or if the object is invalid."""
        try:
            values = json.loads(self.run.read(place, COSINES_LIMIT) or b"null")
        except (CorruptFile, ValueError, RecursionError):
            return None
        if not isinstance(values, dict) or values.keys() != names:
            return None
        if not all(isinstance(value, float) and abs(value) <= MOST_COSINE for value in values.values()):
            return None
        return dict(sorted(values.items()))

    def aggregate(self, lr_scale: float = 1.0) -> Aggregate:
        """theta' = ServerOpt(theta, mean of the regions' means), with the weights and norms of the sites.

        Args:
            lr_scale: learning-rate factor that the guard has applied to server.lr already.

        Raises:
            UpdateRejected: one site's update is bad; drop that site and start over.
            CorruptFile: the old model is damaged, or regions' means are damaged repeatedly.
        """
        for _ in range(TRIES):
            partials = {n: self.partial(n) for n in self.groups}
            numbers = {partial.site: n for n, (_, partial) in partials.items()}
            try:
                cosines = [self.compare(n) for n in partials]
                means = {partial.site: partial for _, partial in partials.values()}
                shares, folder = self._root_shares(partials), self.run.round_dir(self.t)
                result = self._pass(means, shares, folder, self.server, lr_scale)
                break
            except UpdateRejected as rejected:
                if rejected.site not in numbers:
                    raise
                n = numbers[rejected.site]
                if self._whole(*partials[n]):
                    raise UpdateRejected(_largest(partials[n][1]), rejected.reason) from rejected
                self.partial(n, again=True)
        else:
            raise CorruptFile(f"round {self.t}: the means of regions are damaged as soon as they are written")
        norms = {name: value for name, value in result.norms.items() if "/" not in name}
        for of_region in (*(partial.norms for _, partial in partials.values()), *cosines):
            norms |= of_region
        weights = self._shares().weights
        places = [replace(place, kind=PlaceKind.PARTIAL) for place, _ in partials.values()]
        hashes = {place.path: self.run.partial_sha256(place) for place in places}
        return Aggregate(result.model, result.optimizer, weights, norms, hashes)

    def _find_or_make(self, region: int, again: bool) -> tuple[Place, PartialManifest]:
        updates = {site: self.updates[site] for site in self.groups[region]}
        shares = self._region_shares(region)
        place = self._place(region, updates, shares)
        for attempt in range(1, ATTEMPTS_LIMIT + 1):
            mean = replace(place, kind=PlaceKind.MEAN, attempt=attempt)
            folder = mean.path
            if not self.run.exists(replace(mean, kind=PlaceKind.PARTIAL)):
                result = self._pass(updates, shares, folder)
                self._shares().verify(result.norms)
                try:
                    self.run.commit_partial(mean, self._manifest(region, attempt, updates, shares, result))
                except StoreConflict:  # another server has committed the region: the same sites, the same mean
                    for entry in result.model:
                        self.run.store.discard(f"{folder}/{entry.path}")
                again = False
            partial = self._committed(mean, region, attempt, updates, shares)
            if partial is not None and (not again or self._whole(mean, partial)):
                return mean, partial
        raise CorruptFile(
            f"{self.run.store.locate(place.path)} holds {ATTEMPTS_LIMIT} means, none of them of its sites"
        )

    def _committed(
        self, mean: Place, region: int, attempt: int, updates: Updates, shares: Mapping[str, float]
    ) -> PartialManifest | None:
        """The manifest committed in a place, if it is the mean of exactly these updates with these shares."""
        try:
            if (partial := self.run.partial(mean)) is not None:
                most = self._most(len(updates))
                check_manifest(self.run, self.base, self.t, partial.site, partial, most)
        except (CorruptFile, UpdateRejected):  # not a manifest of a mean: the mean goes into the next place
            return None
        parts = {site: reference(self.run, update, shares[site]) for site, update in updates.items()}
        if partial is None or (partial.run, partial.round, partial.attempt) != (self.run.run, self.t, attempt):
            return None
        norms = {f"delta_norm/{site}" for site in updates}
        its_own = partial.site == _member(region) and partial.parts == parts and partial.norms.keys() == norms
        return partial if its_own else None

    def _shares(self) -> Shares:
        """The shares that one server would give all sites."""
        return Shares(self.server, {site: self.updates[site] for site in sorted(self._sites())})

    def _sites(self) -> list[str]:
        return [site for sites in self.groups.values() for site in sites]

    def _root_shares(self, partials: Mapping[int, tuple[Place, PartialManifest]]) -> dict[str, float]:
        """The shares of the regions' means: the sums of their sites' shares."""
        whole = self._shares().shares
        return {partial.site: math.fsum(whole[site] for site in partial.parts) for _, partial in partials.values()}

    def _region_shares(self, region: int) -> dict[str, float]:
        """The shares of a region's sites in its mean. They depend on other regions only with bounded norms."""
        sites = self.groups[region]
        if self.server.mean == "mean":
            return Shares(self.server, {site: self.updates[site] for site in sites}).relative
        whole = self._shares().shares
        total = math.fsum(whole[site] for site in sites)
        return {site: whole[site] / total for site in sites}

    def _place(self, region: int, updates: Updates, shares: Mapping[str, float]) -> Place:
        """The place for exactly these updates to this model, with these shares."""
        hashes = {s: self.run.update_sha256(self.t, s, update.attempt) for s, update in updates.items()}
        inputs = sha256_bytes(canonical_json([self.base.model_sha256, hashes, shares]))
        return Place(PlaceKind.REGION, self.run.run, self.t, region=region, inputs=inputs[:16])

    def _pass(
        self,
        updates: Updates,
        shares: Mapping[str, float],
        folder: str | None,
        server: Server = MEAN,
        lr_scale: float = 1.0,
    ) -> Result:
        """One pass over sites' updates, regions' means, or both, each with its share."""
        means = {partial.site: place.path for place, partial in self._known.values() if partial.site in updates}
        parts = [len(update.parts) for update in updates.values() if isinstance(update, PartialManifest)]
        sources = sources_of(self.run, self.base, self.t, updates, self._most(max(parts, default=1)), means)
        rules = Rules(WeightedMean.fixed(shares))
        return run_pass(Pass(self.run, self.t, self.base, sources, rules, server, folder, lr_scale), self.limits)

    def _most(self, sites: int) -> Work:
        """The maximum work behind the mean of that many sites."""
        return self.most._replace(tokens=self.most.tokens * sites)

    def _manifest(
        self, region: int, attempt: int, updates: Updates, shares: Mapping[str, float], result: Result
    ) -> PartialManifest:
        return PartialManifest(
            run=self.run.run,
            round=self.t,
            site=_member(region),
            attempt=attempt,
            base_sha256=self.base.model_sha256,
            codec=CODEC,
            files=result.model,
            tokens=sum(update.tokens for update in updates.values()),
            steps=max(update.steps for update in updates.values()),
            metrics={"train_loss": sum(shares[s] * u.metrics["train_loss"] for s, u in updates.items())},
            data_sha256="",
            versions=versions(),
            previous_sha256=self.run.round_sha256(self.t - 1),
            parts={site: reference(self.run, update, shares[site]) for site, update in updates.items()},
            norms={name: value for name, value in result.norms.items() if name.startswith("delta_norm/")},
        )

    def _whole(self, mean: Place, partial: PartialManifest) -> bool:
        try:
            for entry in partial.files:
                self.run.store.check(entry, mean.path)
        except CorruptFile:
            return False
        return True


def _member(region: int) -> str:
    """The name of a region among the updates. No site can have such a name."""
    return f"+{region:04d}"


def reference(run: Run, update: UpdateManifest, weight: float) -> UpdateRef:
    """A manifest's reference to an update that it includes with this share of the mean."""
    return UpdateRef(
        attempt=update.attempt,
        sha256=run.update_sha256(update.round, update.site, update.attempt),
        tokens=update.tokens,
        weight=weight,
        bytes=sum(entry.bytes for entry in files_of_update(update)),
        steps=update.steps,
        metrics=update.metrics,
    )


def _largest(partial: PartialManifest) -> str:
    """The site of a region whose change is largest."""
    return max(partial.parts, key=lambda site: partial.norms[f"delta_norm/{site}"])
