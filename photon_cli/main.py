"""photon: the command line. Light on purpose: what a command needs is imported when it runs."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from photon_core.errors import PhotonError, QuorumMissed, StoreConflict
from photon_core.formatting import printable
from photon_core.jobs.telemetry import telemetry_off
from schemas.server_errors import cause, foreign

if TYPE_CHECKING:
    from schemas.federation import Federation

EXIT_WRONG_USE, EXIT_QUORUM, EXIT_CONFLICT, EXIT_INTERRUPTED = 2, 3, 4, 130

app = typer.Typer(
    help="Federated pre-training of language models: sites train one model together, each on its own text.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 3 quorum missed, 4 store conflict, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="the federation file")]
HERE = Path("federation.yaml")
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only results and errors")]


def _sites(context: typer.Context, incomplete: str) -> list[str]:
    """The sites of the file, for the shell's completion of --site."""
    import yaml

    # an option without its value yet stops the parser: FILE is then among what is left over
    named = [*context.args, str(context.params.get("file") or "")]
    file = next((name for name in named if name.endswith((".yaml", ".yml"))), HERE)
    try:
        data = yaml.safe_load(Path(file).read_text("utf-8"))
        names = [str(site["name"]) for site in data["sites"]]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"photon {version('photon-prefect')}")
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Options of every command."""


def _federation(file: Path) -> "Federation":
    """The file, checked; its store has answered, and let us in."""
    from photon_cli.prefect.credentials import take_credentials
    from photon_cli.reach import reachable
    from schemas.reading.load import check_store, load_federation

    federation = load_federation(file)
    check_store(federation, file)
    take_credentials(federation)
    reachable(federation)
    return federation


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--to", help="where the demo keeps everything")] = Path("photon-demo"),
    rounds: Annotated[int, typer.Option(min=1, help="rounds in all")] = 5,
    quiet: Quiet = False,
) -> None:
    """Train a small model with four sites on this machine, on text that comes with Python."""
    from photon_cli.demo import run_demo

    run_demo(folder, rounds, quiet)


@app.command()
def prepare(
    file: File = HERE,
    site: Annotated[
        list[str] | None, typer.Option("--site", "-s", help="only this site (repeatable)", autocompletion=_sites)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Turn a site's text into validated, tokenised shards."""
    from photon_cli.prefect.credentials import take_credentials
    from photon_cli.prepare import prepare_sites
    from schemas.reading.load import load_federation

    federation = load_federation(file)
    take_credentials(federation)
    prepare_sites(federation, file, site, quiet)


@app.command()
def run(
    file: File = HERE,
    rounds: Annotated[int | None, typer.Option("--rounds", "-n", min=1, help="at most so many rounds now")] = None,
    quiet: Quiet = False,
) -> None:
    """Run rounds here, with an embedded Prefect server, until the file's count is reached."""
    from photon_cli.run import run_embedded

    run_embedded(_federation(file), file, rounds, quiet)


@app.command()
def rerun(
    t: Annotated[int, typer.Option("--round", "-r", min=1, help="a round that is not committed yet")],
    site: Annotated[str, typer.Option("--site", "-s", help="the site", autocompletion=_sites)],
    file: File = HERE,
    force: Annotated[bool, typer.Option("--force", help="a new attempt, although an update is committed")] = False,
    quiet: Quiet = False,
) -> None:
    """Have one site train again for a round that is not aggregated yet."""
    from photon_cli.rerun import rerun as again

    again(_federation(file), file, t, site, force, quiet)


@app.command()
def rollback(
    to: Annotated[int, typer.Option("--to", min=0, help="a committed round before the latest")],
    file: File = HERE,
    reason: Annotated[str, typer.Option("--reason", help="why, for the round's manifest and the report")] = "",
) -> None:
    """Go back to an earlier round: the next one starts from its model. Nothing is removed."""
    from photon_cli.rollback import rollback as back

    back(_federation(file), file, to, reason)


@app.command()
def status(
    file: File = HERE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again and again, until the last round")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts; with --watch an object a line")] = False,
) -> None:
    """Show the run's rounds, what every site is doing now, and the time left."""
    from photon_cli.status import show_status

    show_status(_federation(file), file, as_json, watch)


@app.command()
def gc(
    file: File = HERE,
    last: Annotated[int, typer.Option("--keep-last", min=1, help="newest rounds that are kept whole")] = 3,
    every: Annotated[int | None, typer.Option("--keep-every", min=1, help="also keep every M-th round")] = None,
    litter: Annotated[
        str, typer.Option("--litter-age", help="age from which files that no manifest names are removed: 12h, 1d")
    ] = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print what would be removed")] = False,
    quiet: Quiet = False,
) -> None:
    """Remove the tensors of old rounds and unreferenced files from the store; all manifests stay."""
    from photon_cli.gc import collect

    collect(_federation(file), last, every, litter, dry_run, quiet)


@app.command()
def report(
    file: File = HERE,
    to: Annotated[Path | None, typer.Option("--to", help="the page; <run>-report.html if left out")] = None,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about the run: curves, timelines, traffic, what went wrong, how to make it again."""
    from photon_cli.report import report as write

    write(_federation(file), to, quiet)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="federation files, or <store>/<run>")],
    to: Annotated[Path | None, typer.Option("--to", help="a page with the curves")] = None,
    quiet: Quiet = False,
) -> None:
    """Show how runs differ, in their federation files and in what came of them."""
    from photon_cli.compare import compare as side_by_side

    side_by_side(runs, to, quiet)


@app.command()
def deploy(
    file: File = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="remove what the file no longer has")] = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="only print a prefect.yaml, for `prefect deploy --all`; needs no server")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Put the federation on the Prefect server of PREFECT_API_URL: pools, deployments, schedule, automations."""
    from photon_cli.deploy import deploy as put
    from photon_cli.deploy import print_prefect_yaml
    from schemas.reading.load import check_store, load_federation

    if as_yaml and (dry_run or prune):
        raise typer.BadParameter("--yaml asks no server; write it without --dry-run and --prune")
    federation = load_federation(file)
    check_store(federation, file)
    if as_yaml:
        print_prefect_yaml(federation)
        return
    put(federation, dry_run, prune, quiet)


@app.command()
def join(
    file: File = HERE,
    site: Annotated[
        str | None, typer.Option("--site", "-s", help="the site that this machine is", autocompletion=_sites)
    ] = None,
    coordinator: Annotated[bool, typer.Option("--coordinator", help="serve the rounds themselves")] = False,
    unprepared: Annotated[bool, typer.Option("--unprepared", help="join before the data are prepared")] = False,
    check: Annotated[bool, typer.Option("--check", help="only look whether everything is there")] = False,
    measured: Annotated[
        bool, typer.Option("--measure", help="only print the site's hardware and link, for the file")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """At a site: check server, store, device and data, then work for the federation until interrupted."""
    from photon_cli.join import join as serve
    from schemas.reading.load import load_federation

    if (site is None) == (not coordinator):
        raise typer.BadParameter("write --site NAME, or --coordinator")
    if measured:
        if site is None:
            raise typer.BadParameter("--measure is for a site; write --site NAME")
        from photon_cli.measure import measure
        from schemas.view import view_of

        measure(view_of(_federation(file), site), quiet)
        return
    serve(load_federation(file), site, unprepared, check, quiet)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def server(context: typer.Context) -> None:
    """Start a Prefect server for several sites, with the options of `prefect server start`; for others than this
    machine only with a password."""
    os.execv(sys.executable, [sys.executable, "-m", "photon_cli.prefect.server", *context.args])


@app.command()
def plan(
    file: File = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="a page (.html) or a picture (.svg), too")] = None,
) -> None:
    """Predict memory, time and bytes from the file, and from the rounds so far where there are any."""
    from photon_cli.plan import show_plan
    from schemas.reading.load import check_store, load_federation

    federation = load_federation(file)
    check_store(federation, file)
    show_plan(federation, file, as_json, to)


@app.command()
def export(
    to: Annotated[Path, typer.Option("--to", help="a new folder")],
    file: File = HERE,
    t: Annotated[int | None, typer.Option("--round", "-r", min=0, help="the last one if left out")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a round's model as a folder that Hugging Face's transformers loads."""
    from photon_cli.export import export as take_away

    take_away(_federation(file), t, to, quiet)


@app.command()
def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="text that the model continues")],
    file: File = HERE,
    t: Annotated[int | None, typer.Option("--round", "-r", min=0, help="the last one if left out")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="most tokens to add; 100, or what fits the model, if left out")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="draw from the k likeliest tokens only; 0 for all")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="of the drawing")] = 17,
) -> None:
    """Print text from a round's model."""
    from photon_cli.export import generate as speak

    speak(_federation(file), t, prompt, tokens, temperature, top_k, seed)


def main() -> None:
    """Entry point of the command `photon`: errors in one line, documented exit codes."""
    if sys.platform != "linux":
        sys.exit(f"photon: Photon runs on Linux only, and this is {sys.platform}")
    telemetry_off()
    try:
        app()
    except PhotonError as error:
        text = str(error)
        typer.echo(f"photon: {printable(text, len(text), lines=True)}", err=True)
        sys.exit(_exit_code(error))
    except OSError as error:  # a disk that is full, a folder that may not be written
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"photon: {where}{cause(error) if foreign(error) else error.strerror or error}", err=True)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:  # Typer's, in the place of KeyboardInterrupt
            typer.echo("photon: interrupted; the same command continues where this one stopped", err=True)
        raise


def _exit_code(error: PhotonError) -> int:
    if isinstance(error, QuorumMissed):
        return EXIT_QUORUM
    if isinstance(error, StoreConflict):
        return EXIT_CONFLICT
    return EXIT_WRONG_USE if isinstance(error, ValueError) else 1
