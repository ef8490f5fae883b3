"""The register of metrics: name, unit, reporter, how several values are combined, meaning for people.

A metric is one entry here. Aggregation, the nodes of a site, trackers, tables, the checks of sites' claims and the
table in docs/concepts.md read it. Its value is computed where the work is done. Names are stored and never change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp
from statistics import fmean
from typing import Literal

from schemas.manifests import RoundManifest
from schemas.sections.values import NAME

By = Literal["training", "evaluation", "round", "coordinator"]
How = Literal["", "tokens", "weights", "samples", "sum", "max", "mean"]
Bound = Literal["", "loss", "tokens"]

LARGEST_LOSS = 700.0  # exp of more is not a float
PLAIN: Mapping[How, Callable[[Sequence[float]], float]] = {"sum": sum, "max": max, "mean": fmean}


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        name: stored name. It may end with `[/<stream>]` (also one value for each of several streams) or `/<site>`
            (only one value for each site).
        unit: unit of the values; empty for norms and cosines.
        meaning: meaning for people.
        nodes: rule that combines the values of independent nodes into their site's; without it they are dropped.
        sites: rule that combines the sites' values into the round's, under the same name; without it none does.
        bound: limit of a site's claim: the largest loss, or the held-out tokens (aggregation/claims.py).
        required: flag: an update, or evaluation, without it is refused.
        column: head of the column in the tables of rounds; without it there is no column.
        form: format of a value in tables.
        watched: name in the guard's sentences; the guard compares metrics with such a name with running values.
        fact: function that reads the value from a round's manifest, if it is not among the manifest's `metrics`.
    """

    name: str
    unit: str
    meaning: str
    nodes: How = ""
    sites: How = ""
    bound: Bound = ""
    required: bool = False
    column: str = ""
    form: str = ".4g"
    watched: str = ""
    fact: Callable[[RoundManifest], float | None] | None = None

    @cached_property
    def head(self) -> str:
        """The name without streams or sites."""
        return self.name.partition("[")[0].partition("/")[0]

    @cached_property
    def parts(self) -> int:
        """Number of names that follow the head."""
        return self.name.count("/")

    def covers(self, name: str) -> bool:
        """Whether a stored name is this metric's."""
        head, *parts = name.split("/")
        if head != self.head:
            return False
        if not parts:
            return not self.parts or "[" in self.name
        return len(parts) == self.parts and all(map(NAME.fullmatch, parts))


METRICS: Mapping[By, Sequence[Metric]] = {
    "training": (  # reported by a site about its local steps: `metrics` of its update
        Metric("train_loss", "nats", "mean over the local steps", nodes="tokens", sites="weights", bound="loss",
               required=True, column="train loss", form=".3f"),
        Metric("first_loss", "nats", "first local step, which is the old global model's loss", nodes="tokens",
               bound="loss"),
        Metric("last_loss", "nats", "last local step", nodes="tokens", bound="loss"),
        Metric("loss/<stream>", "nats", "training loss by stream, if a site has several", nodes="samples",
               bound="loss"),
        Metric("samples[/<stream>]", "sequences", "number of sequences in the local steps", nodes="sum"),
        Metric("valid_loss[/<stream>]", "nats", "the site's own model on its held-out text, before averaging",
               bound="loss"),
        Metric("valid_tokens[/<stream>]", "tokens", "held-out tokens in the mean `valid_loss`", bound="tokens"),
        Metric("gradient_norm", "", "norm of all gradients of a step before clipping, mean over the steps",
               nodes="tokens", sites="weights"),
        Metric("activation_norm", "", "norm of a token's residual stream after the last block, mean over tokens "
               "and steps", nodes="tokens", sites="weights"),
        Metric("tokens_per_second", "tokens/s", "speed of the local steps", nodes="sum", sites="sum", form=",.0f"),
        Metric("seconds", "s", "duration of the whole training with start, evaluation and encoding", form=".1f"),
        Metric("mfu", "fraction", "share of the declared `hardware.tflops`, at 6 N + 12 L d T operations per "
               "token", nodes="tokens", sites="weights"),
        Metric("delta_norm", "", "norm of the site's change as sent, without key layers"),
        Metric("key_delta_norm", "", "norm of the change of the site's key layers as sent"),
        Metric("unclipped_norm", "", "norm of the site's change before `update.clip_norm`"),
        Metric("micro_batch", "sequences", "sequences that go through the model at once, if not the whole batch",
               nodes="max"),
        Metric("devices", "count", "devices that trained as one job, if several", nodes="sum"),
        Metric("nodes", "count", "nodes that trained independently, if several"),
        Metric("data_tokens", "tokens", "size of the training split as the site reports it, with "
               "`rounds.sampling: tokens`; the file's `data_tokens` takes precedence"),
        Metric("resumed_at_step", "step", "local step of the checkpoint from which training resumed", nodes="max"),
        Metric("state_lost", "1", "private state lost", nodes="max"),
        Metric("stream_restarted", "1", "data stream restarted", nodes="max"),
    ),
    "evaluation": (  # reported by a site about a new global model: its scores
        Metric("loss[/<stream>]", "nats", "new global model on the site's held-out text", sites="tokens",
               bound="loss", required=True),
        Metric("perplexity", "", "exponential of the site's `loss`", required=True, column="validation perplexity",
               form=".2f"),
        Metric("tokens[/<stream>]", "tokens", "held-out tokens in the mean `loss`", bound="tokens", required=True),
    ),
    "round": (  # computed from several numbers of the sites: `metrics` of the round
        Metric("perplexity[/<stream>]", "", "exponential of the round's `loss`", form=".2f"),
        Metric("loss_before[/<stream>]", "nats", "mean `valid_loss` of the sites that trained, by `valid_tokens`"),
        Metric("perplexity_before[/<stream>]", "", "exponential of `loss_before`", form=".2f"),
        Metric("loss_after[/<stream>]", "nats", "new global model on the held-out text of the same sites"),
        Metric("perplexity_after[/<stream>]", "", "exponential of `loss_after`", form=".2f"),
    ),
    "coordinator": (  # measured by the coordinator itself
        Metric("pseudo_gradient_norm", "", "norm of the sites' mean change"),
        Metric("step_norm", "", "norm of the server's step from the old model", watched="the server's step"),
        Metric("model_norm", "", "norm of the new model", watched="the model's norm"),
        Metric("delta_norm/<site>", "", "norm of a site's change, as received"),
        Metric("key_distance/<site>", "", "distance of a member's key layers, as received, from the old ones"),
        Metric("cosine/<site>", "", "cosine of a site's change with the mean change"),
        Metric("cosine_pair/<site>/<site>", "", "cosine of two sites' changes (at most 16 sites)"),
        Metric("seconds/<phase>", "s", "duration of a phase of the round", form=".1f"),
        Metric("total_tokens", "tokens", "trained in the run so far", fact=lambda m: m.total_tokens),
        Metric("global_step", "step", "local steps of the run so far", fact=lambda m: m.global_step),
        Metric("bytes_sent", "bytes", "size of all updates",
               fact=lambda m: sum(update.bytes for update in m.updates.values())),
        Metric("sites", "count", "sites whose updates were aggregated", fact=lambda m: len(m.updates)),
        Metric("left_out", "count", "sampled sites without one", fact=lambda m: len(m.left_out)),
        Metric("rolled_back_to", "round", "number of the round that a rollback returns to",
               fact=lambda m: m.to),
    ),
}  # fmt: skip
REGISTER = {(by, metric.head): metric for by, metrics in METRICS.items() for metric in metrics}


def reported(by: By) -> list[Metric]:
    """The metrics of one reporter, in their order."""
    return [metric for (who, _), metric in REGISTER.items() if who == by]


def find(name: str, *by: By) -> Metric | None:
    """The metric of a stored name.

    Args:
        name: stored name, with its stream or site.
        by: possible reporters, in the order of the search; by default all.
    """
    for who in by or METRICS:
        metric = REGISTER.get((who, name.partition("/")[0]))
        if metric is not None and metric.covers(name):
            return metric
    return None


def show(name: str, value: float) -> str:
    """A value in the format of tables and messages."""
    metric = find(name)
    return format(value, metric.form if metric else Metric.form)


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats a token; finite for every loss."""
    return exp(min(loss, LARGEST_LOSS))
