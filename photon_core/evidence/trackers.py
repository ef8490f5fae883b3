"""The metrics that experiment trackers get of a round, and the check that trackers are installed."""

import re
from importlib.metadata import PackageNotFoundError, version

from photon_core.errors import FederationError
from photon_core.evidence.metrics import reported
from schemas.federation import Federation
from schemas.manifests import RoundManifest

# the versions that Composer 0.32.1's loggers work with: wandb 0.30 no longer has the Run.get_url that they call
PACKAGES = {"tensorboard": "tensorboard>=2.18,<3", "mlflow": "mlflow>=2.20,<4", "wandb": "wandb>=0.19,<0.30"}
# MLflow refuses a whole round for one name with other characters, or with a part that is '.' or '..'
PART = r"(?!\.{1,2}(/|$))[A-Za-z0-9_. -]+"
VALID = re.compile(f"{PART}(/{PART})*")


def check_trackers(federation: Federation) -> None:
    """Refuse, before any work, a tracker whose package is not installed in a version that Composer supports.

    Raises:
        FederationError: the package is missing; the message says what to install.
    """
    from packaging.requirements import Requirement

    for tracker in federation.trackers:
        package = PACKAGES[tracker.name]
        try:
            installed = version(tracker.name)
        except PackageNotFoundError:
            problem = "which is not installed"
        else:
            if Requirement(package).specifier.contains(installed, prereleases=True):
                continue
            problem = f"but {installed} is installed"
        raise FederationError(
            f"trackers: '{tracker.name}' needs the package {package}, {problem} on this machine; "
            f"run pip install '{package}', or drop the tracker"
        )


def tracked(manifest: RoundManifest) -> dict[str, float]:
    """A committed round's metrics by name: global/<metric>, sites/<site>/<metric>.

    A site's metric is omitted if a tracker would refuse its name.
    """
    metrics = {f"global/{name}": value for name, value in manifest.metrics.items()}
    metrics |= {f"global/seconds/{name}": value for name, value in manifest.seconds.items()}
    facts = {metric.name: metric.fact(manifest) for metric in reported("coordinator") if metric.fact}
    metrics |= {f"global/{name}": float(value) for name, value in facts.items() if value is not None}
    for site, update in manifest.updates.items():
        valid = {name: value for name, value in update.metrics.items() if VALID.fullmatch(name)}
        metrics |= {f"sites/{site}/{name}": value for name, value in valid.items()}
        metrics |= {f"sites/{site}/weight": update.weight, f"sites/{site}/tokens": float(update.tokens)}
    for site, scores in manifest.evaluations.items():
        metrics |= {f"sites/{site}/validation_{name}": value for name, value in scores.items() if name != "tokens"}
    return metrics
