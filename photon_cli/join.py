"""photon join: look whether a site can do its part, then become the worker of its work pool."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from photon_cli.prefect.remote import NotReady, require_server
from photon_core.data.paths import find_site
from photon_core.errors import DataError, PhotonError
from photon_core.hardware.parallelism import check_gpus, check_infra, check_processors
from photon_core.jobs.sharing import serve_beside
from photon_core.training.entry import PRELOAD
from schemas.federation import Federation
from schemas.protocol import PROTOCOL_TAG, other_protocol
from schemas.reading.load import check_paths
from schemas.sections.local import Local
from schemas.sections.overlap import check_overlap
from schemas.server_errors import told
from tasks.tags import tagged

GPUS = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
CUDA_SECONDS = 300.0  # importing torch from a cold disk takes a while
WORKER = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # jobs call python
    "PREFECT_WORKER_QUERY_SECONDS": "1",  # at Prefect's 10 a site waits twice as long for its work
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "15",
    "PREFECT_CLI_WRAP_LINES": "false",
}
WORKER_PACKAGES = {"docker": "prefect_docker", "kubernetes": "prefect_kubernetes"}


def join(federation: Federation, site: str | None, unprepared: bool, check_only: bool, quiet: bool) -> None:
    """Check everything, then turn this process into the pool's worker, which then gets all signals.

    Args:
        site: the site's name; the coordinator if None.
        unprepared: start although the data are not prepared, for the site's prepare deployment to do it.
        check_only: return instead of starting.

    Raises:
        FederationError: there is no such site.
        NotReady: names, a line each, what is not there: server, store, device or data.
    """
    pool, kind = _pool(federation, site)
    checks: dict[str, Callable[[], str]] = {"server": lambda: _server(federation, site, pool, kind)}
    if site is None or kind == "process":
        checks["store"] = lambda: _store(federation, site)
    if site is not None and kind == "process":  # others train elsewhere: what this machine has says nothing
        checks["device"] = lambda: _device(federation, site)
        checks["data"] = lambda: _data(federation, site, unprepared)
    problems = []
    for name, check in checks.items():
        try:
            found = check()
        except Exception as error:  # every filesystem has errors of its own
            text = told(error)
            problems.append(f"{name}: {text}")
        else:
            if not quiet:
                print(f"{name + ':':<12} {found}", flush=True)
    if problems:
        raise NotReady("not started.\n" + "\n".join(problems))
    if not check_only:
        _become_worker(federation, site, pool, kind)


def _pool(federation: Federation, site: str | None) -> tuple[str, str]:
    """The name and type of the work pool to serve."""
    if site is None:
        return federation.coordinator_pool, federation.deploy.pool_type
    find_site(federation, site)
    return federation.site_pool(site), federation.site_pool_type(site)


def _server(federation: Federation, site: str | None, pool: str, kind: str) -> str:
    """The server answers, has the pool and the deployment, and the store's credentials if in a block."""
    from importlib.util import find_spec

    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from photon_cli.prefect.credentials import take_credentials

    url = require_server()
    with get_client(sync_client=True) as client:
        try:
            there = client.read_work_pool(pool)
        except ObjectNotFound:
            raise NotReady(f"{url} has no work pool '{pool}'. Write: photon deploy FILE") from None
        if there.type != kind:
            raise NotReady(f"the work pool '{pool}' is of type {there.type}, and the file says {kind}")
        _check_deployed(client, federation, site)
    take_credentials(federation)
    package = WORKER_PACKAGES.get(kind)
    if package and find_spec(package) is None:
        raise NotReady(f"a worker of type {kind} needs a package: pip install {package.replace('_', '-')}")
    return f"{url}, work pool {pool} ({kind})"


def _check_deployed(client: Any, federation: Federation, site: str | None) -> None:
    """What the server would have this machine do is what the file here says: above all, in the same folders."""
    from prefect.exceptions import ObjectNotFound

    name = f"site-round/{federation.run}-{site}" if site else f"federated-round/{federation.run}"
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise NotReady(f"the server has no deployment '{name}'. Write: photon deploy FILE") from None
    here = f"site '{site}'" if site else "the coordinator"
    if problem := other_protocol(tagged(deployment.tags, PROTOCOL_TAG), f"the deployment '{name}'", here):
        raise NotReady(problem)
    try:
        there = Federation.model_validate(deployment.parameters["federation"])
    except (ValueError, KeyError):
        raise NotReady(f"the deployment '{name}' is of another version. Write: photon deploy FILE") from None
    for (key, deployed), (_, here) in zip(_places(there, site), _places(federation, site), strict=True):
        if deployed != here:
            raise NotReady(
                f"{key} is {deployed} in the deployed file and {here} in this one; "
                "write absolute paths that hold at the site, and: photon deploy FILE"
            )


def _places(federation: Federation, site: str | None) -> list[tuple[str, Any]]:
    """What must mean the same at the server and here."""
    common = [("store", federation.store), ("tokenizer", federation.tokenizer)]
    if site is None:
        return common
    here = federation.site(site).model_dump(mode="json")
    return [*common, *((f"sites[{site}].{key}", here[key]) for key in ("state_dir", "streams", "shards"))]


def _store(federation: Federation, site: str | None) -> str:
    """The store takes a file where this site writes, and gives up its list of rounds."""
    from photon_cli.reach import reachable

    run = reachable(federation)
    folder = run.round_dir(0) + (f"/sites/{site}" if site else "")
    probe = f"{folder}/.probe-{uuid.uuid4().hex}"
    try:
        run.store.create(probe, b"")
        latest = run.latest()
    except PhotonError:
        raise
    except Exception as error:
        raise NotReady(
            f"{run.store.url} cannot be read and written ({told(error)}); correct its address, "
            "or the credentials in the environment"
        ) from None
    with suppress(Exception):  # a site may be allowed to write and not to remove: then it is litter
        run.store.discard(probe)
    return f"{run.store.url}, " + ("no round yet" if latest is None else f"round {latest} is the latest")


def _device(federation: Federation, site: str) -> str:
    """The devices that the file asks for. Looked at in a child: CUDA must not be touched here."""
    infra, hardware = check_infra(federation, site), federation.site(site).hardware
    if federation.local.device == "cpu":
        return "cpu, as the file says"
    try:
        done = subprocess.run([sys.executable, "-c", GPUS], capture_output=True, timeout=CUDA_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotReady(f"looking for a GPU took more than {CUDA_SECONDS:.0f} s: its driver hangs") from None
    found = 0 if done.returncode else int(done.stdout.split()[-1])
    if not found:
        require_gpu(federation.local)
        check_processors(federation, site)
        return "no GPU can be used here: training takes the processors"
    check_gpus(site, devices := infra.nodes * infra.ranks, found)
    more = found > (hardware.all_devices if hardware else 1)
    write = f"; photon join FILE --site {site} --measure prints what to write" if more else ""
    return f"cuda, {devices} of {found} GPUs{write}"


def require_gpu(local: Local) -> None:
    """Where no GPU can be used: raise NotReady if the file wants one."""
    if local.device == "cuda" or local.precision == "amp_bf16":
        said = "device: cuda" if local.device == "cuda" else "precision: amp_bf16, which needs a GPU"
        raise NotReady(f"the file says local.{said}, and no GPU can be used here; look at nvidia-smi")


def _data(federation: Federation, site: str, unprepared: bool) -> str:
    """The site's shards are prepared, or can be."""
    from photon_core.data.paths import data_dir
    from photon_core.data.shards import available

    check_overlap(federation, [site])
    manifest = available(federation, site)
    if manifest is None and unprepared:
        check_paths(federation, [site])
        return "not prepared yet; the text is there"
    if manifest is None:
        raise DataError(f"not prepared yet. Write: photon prepare FILE --site {site} (or join with --unprepared)")
    return f"{manifest.train_tokens:,} tokens in {federation.site(site).shards or data_dir(federation, site)}"


def _become_worker(federation: Federation, site: str | None, pool: str, kind: str) -> NoReturn:
    """Replace this process: the worker gets every signal, and its end is this command's end."""
    name = f"photon-{federation.run}-{site or 'coordinator'}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", kind, "--name", name]
    heartbeat = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": f"{federation.deploy.heartbeat:.0f}"}
    # every flow run is a process of its own: they share one fork server, which has imported composer once
    shared = serve_beside(PRELOAD) if kind == "process" and site is not None else {}
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script's background job ignores it, and Prefect ends by it
    os.execve(sys.executable, command, {**WORKER, **os.environ, **heartbeat, **shared, "PATH": WORKER["PATH"]})
