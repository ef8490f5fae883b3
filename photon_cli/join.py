"""photon join: check that a site is ready, then become the worker of its work pool."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from photon_cli.prefect.remote import NotReady, require_server
from photon_core.errors import DataError, PhotonError
from photon_core.hardware.parallelism import check_gpus, check_infra, check_processors
from photon_core.jobs.sharing import serve_beside
from photon_core.store.interface import probe_name
from photon_core.training.entry import PRELOAD
from schemas.federation import Federation
from schemas.protocol import PROTOCOL_TAG, other_protocol
from schemas.reading.load import check_paths
from schemas.sections.local import Local
from schemas.sections.overlap import check_overlap
from schemas.server_errors import told
from schemas.view import SiteView, view_of
from tasks.tags import tagged

GPUS = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
CUDA_SECONDS = 300.0  # importing torch from a cold disk is slow
WORKER = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # jobs call python
    "PREFECT_WORKER_QUERY_SECONDS": "1",  # with Prefect's 10, a site waits twice as long for its work
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "15",
    "PREFECT_CLI_WRAP_LINES": "false",
}
WORKER_PACKAGES = {"docker": "prefect_docker", "kubernetes": "prefect_kubernetes"}


@dataclass(frozen=True)
class _Served:
    """Member whose work this machine does: a site, or the coordinator if `view` is None."""

    federation: Federation
    view: SiteView | None

    @property
    def site(self) -> str | None:
        return None if self.view is None else self.view.name

    @property
    def pool(self) -> str:
        """Name of its work pool."""
        return self.federation.coordinator_pool if self.view is None else self.view.section.work_pool

    @property
    def kind(self) -> str:
        """Type of its work pool."""
        return self.federation.deploy.pool_type if self.view is None else self.view.pool_type


def join(federation: Federation, site: str | None, unprepared: bool, check_only: bool, quiet: bool) -> None:
    """Check everything, then turn this process into the pool's worker, which from then on gets all signals.

    Args:
        site: name of the site; the coordinator if None.
        unprepared: flag: start even if the data is not prepared, so that the prepare deployment can prepare it.
        check_only: flag: return after the checks.

    Raises:
        FederationError: there is no such site.
        NotReady: server, store, device or data is not ready; a line for each.
    """
    view = None if site is None else view_of(federation, site)
    served = _Served(federation, view)
    checks: dict[str, Callable[[], str]] = {"server": lambda: _server(served)}
    if view is None or served.kind == "process":
        checks["store"] = lambda: _store(served)
    if view is not None and served.kind == "process":  # other types train on other machines than this one
        checks["device"] = lambda: _device(view)
        checks["data"] = lambda: _data(view, unprepared)
    report(checks, quiet)
    if not check_only:
        _become_worker(served)


def report(checks: Mapping[str, Callable[[], str]], quiet: bool) -> None:
    """Make all checks, and print what each found.

    Raises:
        NotReady: a check failed; a line for each.
    """
    problems = []
    for name, check in checks.items():
        try:
            found = check()
        except Exception as error:  # every filesystem raises its own errors
            problems.append(f"{name}: {told(error)}")
        else:
            if not quiet:
                print(f"{name + ':':<12} {found}", flush=True)
    if problems:
        raise NotReady("not started.\n" + "\n".join(problems))


def _server(served: _Served) -> str:
    """Check that the server answers and has the pool, the deployment and the store's credentials block, if any."""
    from importlib.util import find_spec

    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from photon_cli.prefect.credentials import take_credentials

    url, pool, kind = require_server(), served.pool, served.kind
    with get_client(sync_client=True) as client:
        try:
            there = client.read_work_pool(pool)
        except ObjectNotFound:
            raise NotReady(f"{url} has no work pool '{pool}'. Write: photon deploy FILE") from None
        if there.type != kind:
            raise NotReady(
                f"the work pool '{pool}' has type {there.type}, but the file says {kind}. "
                "Correct pool_type in the file, then write: photon deploy FILE"
            )
        _check_deployed(client, served)
    take_credentials(served.federation)
    package = WORKER_PACKAGES.get(kind)
    if package and find_spec(package) is None:
        raise NotReady(f"a worker of type {kind} needs a package: pip install {package.replace('_', '-')}")
    return f"{url}, work pool {pool} ({kind})"


def _check_deployed(client: Any, served: _Served) -> None:
    """Check that the server's deployment and this file agree, above all about folders."""
    from prefect.exceptions import ObjectNotFound

    site, run = served.site, served.federation.run
    name = f"site-round/{run}-{site}" if site else f"federated-round/{run}"
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise NotReady(f"the server has no deployment '{name}'. Write: photon deploy FILE") from None
    here = f"site '{site}'" if site else "the coordinator"
    if problem := other_protocol(tagged(deployment.tags, PROTOCOL_TAG), f"the deployment '{name}'", here):
        raise NotReady(problem)
    try:
        file = Federation.model_validate(deployment.parameters["federation"])
        there = _Served(file, view_of(file, site) if site else None)
    except (ValueError, KeyError):
        raise NotReady(
            f"the deployment '{name}' was made by another version of Photon. Write: photon deploy FILE"
        ) from None
    for (key, deployed), (_, here) in zip(_places(there), _places(served), strict=True):
        if deployed != here:
            raise NotReady(
                f"{key} is {deployed} in the deployed file and {here} in this one. "
                "Write absolute paths that are valid at the site, then: photon deploy FILE"
            )


def _places(served: _Served) -> list[tuple[str, Any]]:
    """Settings that must have the same meaning at the server and here."""
    common = [("store", served.federation.store), ("tokenizer", served.federation.tokenizer)]
    if served.view is None:
        return common
    here = served.view.section.model_dump(mode="json")
    return [*common, *((f"sites[{served.site}].{key}", here[key]) for key in ("state_dir", "streams", "shards"))]


def _store(served: _Served) -> str:
    """Check that the store accepts a file where this site writes, and lists its rounds."""
    return probed(served.federation, served.site)


def probed(federation: Federation, member: str | None) -> str:
    """Check that the store accepts a file where a member writes, or the coordinator, and lists its rounds."""
    from photon_cli.reach import reachable

    run = reachable(federation)
    folder = run.site_folder(0, member) if member else run.round_dir(0)
    probe = f"{folder}/{probe_name()}"
    try:
        run.store.create(probe, b"")
        latest = run.latest()
    except PhotonError:
        raise
    except Exception as error:
        raise NotReady(
            f"{run.store.url} cannot be read and written ({told(error)}). Correct its address, "
            "or the credentials in the environment"
        ) from None
    with suppress(Exception):  # a site may have no permission to remove files: `photon gc` removes this one
        run.store.discard(probe)
    return f"{run.store.url}, " + ("no round yet" if latest is None else f"round {latest} is the latest")


def _device(view: SiteView) -> str:
    """Check that the file's devices exist. A child looks: CUDA must not be initialised in this process."""
    infra, hardware = check_infra(view), view.hardware
    if view.local.device == "cpu":
        return "cpu, as the file says"
    try:
        done = subprocess.run([sys.executable, "-c", GPUS], capture_output=True, timeout=CUDA_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotReady(
            f"looking for a GPU took more than {CUDA_SECONDS:.0f} s: its driver hangs; look at nvidia-smi"
        ) from None
    found = 0 if done.returncode else int(done.stdout.split()[-1])
    if not found:
        require_gpu(view.local)
        check_processors(view)
        return "no usable GPU on this machine: training uses the processors"
    check_gpus(view.name, devices := infra.nodes * infra.ranks, found)
    more = found > (hardware.all_devices if hardware else 1)
    write = f"; photon join FILE --site {view.name} --measure prints what to write" if more else ""
    return f"cuda, {devices} of {found} GPUs{write}"


def require_gpu(local: Local) -> None:
    """Raise NotReady if the file requires a GPU. For a machine without a usable one."""
    if local.device == "cuda" or local.precision == "amp_bf16":
        said = "device: cuda" if local.device == "cuda" else "precision: amp_bf16, which needs a GPU"
        raise NotReady(f"the file says local.{said}, but this machine has no usable GPU; look at nvidia-smi")


def _data(view: SiteView, unprepared: bool) -> str:
    """Check that the site's shards are prepared, or can be."""
    from photon_core.data.shards import available

    check_overlap(view.federation, [view.name])
    manifest = available(view)
    if manifest is None and unprepared:
        check_paths(view.federation, [view.name])
        return "not prepared yet; the text exists"
    if manifest is None:
        write = f"photon prepare FILE --site {view.name}"
        raise DataError(f"not prepared yet. Write: {write} (or join with --unprepared)")
    return f"{manifest.train_tokens:,} tokens in {view.section.shards or view.data_dir}"


def _become_worker(served: _Served) -> NoReturn:
    """Become the worker of a site or of the coordinator."""
    federation, pool, kind = served.federation, served.pool, served.kind
    # each flow run has its own process: all share one fork server, which imports composer once
    shared = serve_beside(PRELOAD) if kind == "process" and served.view is not None else {}
    name = f"photon-{federation.run}-{served.site or 'coordinator'}"
    start_worker(federation, pool, kind, name, shared)


def start_worker(federation: Federation, pool: str, kind: str, name: str, more: Mapping[str, str]) -> NoReturn:
    """Replace this process: the worker gets every signal, and this command ends with it.

    Args:
        federation: file of the process.
        pool, kind: name and type of the work pool.
        name: name of the worker.
        more: variables of its environment.
    """
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", kind, "--name", name]
    heartbeat = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": f"{federation.deploy.heartbeat:.0f}"}
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script's background job ignores it, but Prefect ends by it
    os.execve(sys.executable, command, {**WORKER, **os.environ, **heartbeat, **more, "PATH": WORKER["PATH"]})
