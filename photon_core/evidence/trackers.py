"""What experiment trackers are told of a round, and whether they can be."""

import re
from importlib.metadata import PackageNotFoundError, version

from photon_core.errors import FederationError
from photon_core.evidence.metrics import reported
from schemas.federation import Federation
from schemas.manifests import RoundManifest

# what Composer 0.32.1's loggers work with: wandb 0.30 has lost the Run.get_url that they call
PACKAGES = {"tensorboard": "tensorboard>=2.18,<3", "mlflow": "mlflow>=2.20,<4", "wandb": "wandb>=0.19,<0.30"}
# MLflow refuses a whole round for one name of other characters, or with a part that is '.' or '..'
PART = r"(?!\.{1,2}(/|$))[A-Za-z0-9_. -]+"
TAKEN = re.compile(f"{PART}(/{PART})*")


def check_trackers(federation: Federation) -> None:
    """Refuse, before any work, a tracker whose package is not installed in a version that Composer's logger takes.

    Raises:
        FederationError: naming it and what to install.
    """
    from packaging.requirements import Requirement

    for tracker in federation.trackers:
        package = PACKAGES[tracker.name]
        try:
            there = version(tracker.name)
        except PackageNotFoundError:
            found = "which is not installed here"
        else:
            if Requirement(package).specifier.contains(there, prereleases=True):
                continue
            found = f"but {there} is installed here"
        raise FederationError(
            f"trackers: '{tracker.name}' needs the package {package}, {found}; "
            f"write pip install '{package}', or drop it"
        )


def tracked(manifest: RoundManifest) -> dict[str, float]:
    """A committed round's metrics by name: global/<metric>, sites/<site>/<metric>.

    Of a site's own metrics those whose names every tracker takes.
    """
    found = {f"global/{name}": value for name, value in manifest.metrics.items()}
    found |= {f"global/seconds/{name}": value for name, value in manifest.seconds.items()}
    facts = {metric.name: metric.fact(manifest) for metric in reported("coordinator") if metric.fact}
    found |= {f"global/{name}": float(value) for name, value in facts.items() if value is not None}
    for site, update in manifest.updates.items():
        told = {name: value for name, value in update.metrics.items() if TAKEN.fullmatch(name)}
        found |= {f"sites/{site}/{name}": value for name, value in told.items()}
        found |= {f"sites/{site}/weight": update.weight, f"sites/{site}/tokens": float(update.tokens)}
    for site, scores in manifest.evaluations.items():
        found |= {f"sites/{site}/validation_{name}": value for name, value in scores.items() if name != "tokens"}
    return found
