"""Sample federation files in memory, for tests that neither prepare text nor train; what is in a run's store."""

from typing import Any

from photon_core.export.model import NodeModel, committed_model
from photon_core.export.node import Node
from photon_core.run.run import Run
from schemas.federation import Federation
from schemas.manifests import UpdateManifest
from schemas.reading.world import World


def site(name: str, *streams: str, **more: Any) -> dict[str, Any]:
    """A site with streams of these names, alike in proportion; one called s if none is given."""
    names = streams or ("s",)
    share = {"proportion": 1 / len(names)} if len(names) > 1 else {}
    return {"name": name, "streams": [{"name": s, "source": f"{s}.txt", **share} for s in names], **more}


def sections(**more: Any) -> dict[str, Any]:
    """A whole file of three sites; keywords are in the place of its sections."""
    return {
        "run": "r",
        "store": "/store",
        "tokenizer": "bytes",
        "model": {"n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 257},
        "rounds": {"count": 5},
        "local": {"steps": 10, "batch_size": 2},
        "sites": [site("a"), site("b"), site("c")],
        **more,
    }


def sample(**more: Any) -> Federation:
    """The same, checked."""
    return Federation.model_validate(sections(**more))


def attempts_of(run: Run, t: int, site: str) -> list[UpdateManifest]:
    """A site's committed updates for round t, by attempt."""
    attempts = range(1, run.committed_attempt(t, site) + 1)
    return [update for attempt in attempts if (update := run.update(t, site, attempt))]


def updates_of(run: Run, t: int, *sites: str) -> dict[str, UpdateManifest]:
    """Each site's first update for round t."""
    return {site: attempts_of(run, t, site)[0] for site in sites}


def committed(federation: Federation, t: int | None = None) -> NodeModel:
    """The model of a federation's committed round."""
    return committed_model(Node((), World(federation, "federation.yaml", {})), t)
