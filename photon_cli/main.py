"""photon: the command line. It stays light: a command's imports happen when it runs."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from photon_cli.choice import Choice, chooses_model
from photon_core.errors import PhotonError, QuorumMissed, StoreConflict
from photon_core.formatting import printable
from photon_core.jobs.telemetry import telemetry_off
from schemas.server_errors import cause, foreign

if TYPE_CHECKING:
    from schemas.federation import Federation
    from schemas.reading.world import World

EXIT_WRONG_USE, EXIT_QUORUM, EXIT_CONFLICT, EXIT_INTERRUPTED = 2, 3, 4, 130

app = typer.Typer(
    help="Federated pre-training of language models: sites train one model together, each on its own text.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 3 quorum missed, 4 store conflict, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="the federation file")]
HERE = Path("federation.yaml")
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only, no progress")]


def _sites(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the file's sites, for the shell's completion of --site."""
    # an option that has no value yet stops the parser: FILE is then among the remaining arguments
    named = [*context.args, str(context.params.get("file") or "")]
    file = next((name for name in named if name.endswith((".yaml", ".yml"))), HERE)
    return [name for name in _names(Path(file)) if name.startswith(incomplete)]


def _names(file: Path, depth: int = 9) -> list[str]:
    """Paths of the sites of a file and of the files below it. Wrong files may refer to each other in a circle."""
    import yaml

    try:
        data = yaml.safe_load(file.read_text("utf-8"))
        names = [str(site["name"]) for site in data.get("sites", [])]
        for child in data.get("federations", []) if depth else []:
            below = _names(file.parent / child["federation"], depth - 1) if child.get("federation") else []
            names += [f"{child['name']}/{name}" for name in below]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []
    return names


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
    """The file, checked. Its store has answered and granted access."""
    from photon_cli.prefect.credentials import take_credentials
    from photon_cli.reach import reachable
    from schemas.reading.load import check_store, load_federation

    federation = load_federation(file)
    check_store(federation, file)
    take_credentials(federation)
    reachable(federation)
    return federation


def _world(file: Path) -> "World":
    """The checked file and those below it. Their stores have answered and accept the credentials."""
    from photon_cli.tree import reach_world

    return reach_world(file)


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Option("--to", help="folder of the demo; default: photon-demo, or photon-world")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="total number of rounds; default: 5, or 3 with --world")
    ] = None,
    world: Annotated[
        bool, typer.Option("--world", help="train a tree: two federations with three sites each")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a small model with four sites on this machine, on text that comes with Python."""
    if world:
        from photon_cli.demo_world import run_demo_world

        run_demo_world(folder or Path("photon-world"), rounds or 3, quiet)
        return
    from photon_cli.demo import run_demo

    run_demo(folder or Path("photon-demo"), rounds or 5, quiet)


@app.command()
def prepare(
    file: File = HERE,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            "-s",
            help="prepare this site only, such as berlin or europe/berlin (repeatable)",
            autocompletion=_sites,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Turn a site's text into validated, tokenised shards."""
    from photon_cli.prepare import prepare_sites
    from photon_cli.tree import read_world

    prepare_sites(read_world(file, site), site, quiet)


@app.command()
def run(
    file: File = HERE,
    rounds: Annotated[
        int | None, typer.Option("--rounds", "-n", min=1, help="stop after N rounds", metavar="N")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run rounds on this machine, with an embedded Prefect server, until the file's count is reached."""
    from photon_cli.run import run_embedded

    run_embedded(_world(file), rounds, quiet)


@app.command()
def rerun(
    t: Annotated[int, typer.Option("--round", "-r", min=1, help="number of a round that is not committed yet")],
    site: Annotated[str, typer.Option("--site", "-s", help="name of the site", autocompletion=_sites)],
    file: File = HERE,
    force: Annotated[
        bool, typer.Option("--force", help="start a new attempt even if an update is committed")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Repeat one site's training for a round that is not aggregated yet."""
    from photon_cli.rerun import rerun as again
    from photon_cli.tree import refuse_tree

    federation = _federation(file)
    refuse_tree(federation, file, "rerun", "photon run FILE, with the root's file, resumes")
    again(federation, file, t, site, force, quiet)


@app.command()
def rollback(
    to: Annotated[int, typer.Option("--to", min=0, help="number of a committed round before the latest")],
    file: File = HERE,
    reason: Annotated[str, typer.Option("--reason", help="reason, for the round's manifest and the report")] = "",
) -> None:
    """Roll back to an earlier round: the next round starts from its model. Nothing is removed."""
    from photon_cli.rollback import rollback as back

    back(_federation(file), file, to, reason)


@app.command()
def status(
    file: File = HERE,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="refresh until the last round is committed")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON for scripts; with --watch, one object per line")
    ] = False,
) -> None:
    """Show the run's rounds, what every site is doing now, and the time left."""
    from photon_cli.status import show_status
    from photon_cli.tree import look_at_world

    show_status(*look_at_world(file), as_json, watch)


@app.command()
def gc(
    file: File = HERE,
    last: Annotated[
        int, typer.Option("--keep-last", min=1, help="keep the newest N rounds whole", metavar="N")
    ] = 3,
    every: Annotated[
        int | None, typer.Option("--keep-every", min=1, help="also keep every M-th round", metavar="M")
    ] = None,
    orphan_age: Annotated[
        str, typer.Option("--orphan-age", help="remove unreferenced files older than this, such as 12h or 1d")
    ] = "1d",
    old_name: Annotated[str | None, typer.Option("--litter-age", hidden=True)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would be removed")] = False,
    quiet: Quiet = False,
) -> None:
    """Remove the tensors of old rounds and unreferenced files from the store. All manifests are kept."""
    from photon_cli.gc import collect

    collect(_federation(file), last, every, old_name or orphan_age, dry_run, quiet)


@app.command()
def report(
    file: File = HERE,
    to: Annotated[Path | None, typer.Option("--to", help="HTML file; default: <run>-report.html")] = None,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about the run: curves, timelines, traffic, problems, and how to reproduce it."""
    from photon_cli.report import report as write
    from photon_cli.tree import look_at_world

    write(*look_at_world(file), to, quiet)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="federation files, or <store>/<run>")],
    to: Annotated[Path | None, typer.Option("--to", help="HTML file for a page with the curves")] = None,
    quiet: Quiet = False,
) -> None:
    """Show how runs differ, in their federation files and in their results."""
    from photon_cli.compare import compare as side_by_side

    side_by_side(runs, to, quiet)


@app.command()
def deploy(
    file: File = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would change")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="remove from the server what the file no longer contains")
    ] = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="only print a prefect.yaml for `prefect deploy --all`; needs no server")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Register pools, deployments, schedule and automations on the Prefect server of PREFECT_API_URL."""
    from photon_cli.deploy import deploy as put
    from photon_cli.deploy import print_prefect_yaml
    from schemas.reading.load import check_store
    from schemas.reading.world import load_world

    if as_yaml and (dry_run or prune):
        raise typer.BadParameter("--yaml needs no server; write it without --dry-run and --prune")
    federation = load_world(file).federation
    check_store(federation, file)
    if as_yaml:
        print_prefect_yaml(federation)
        return
    put(federation, dry_run, prune, quiet)


@app.command()
def join(
    file: File = HERE,
    site: Annotated[
        str | None, typer.Option("--site", "-s", help="name of this machine's site", autocompletion=_sites)
    ] = None,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="run the coordinator of the rounds on this machine")
    ] = False,
    unprepared: Annotated[bool, typer.Option("--unprepared", help="join before the data is prepared")] = False,
    check: Annotated[bool, typer.Option("--check", help="only check server, store, device and data")] = False,
    measured: Annotated[
        bool, typer.Option("--measure", help="only measure the site's hardware and link and print them as YAML")
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
            raise typer.BadParameter("--measure measures a site; write --site NAME")
        from photon_cli.measure import measure
        from schemas.view import view_of

        measure(view_of(_federation(file), site), quiet)
        return
    serve(load_federation(file), site, unprepared, check, quiet)


@app.command()
def join_parent(
    server: Annotated[
        str, typer.Option("--server", help="URL of the parent's Prefect API, or a Prefect profile that has it")
    ],
    file: File = HERE,
    check: Annotated[bool, typer.Option("--check", help="only check both servers and both stores")] = False,
    quiet: Quiet = False,
) -> None:
    """At a member that is a federation: check servers and stores, then work for the parent until interrupted."""
    from photon_cli.join_parent import join_parent as serve
    from schemas.reading.load import load_federation

    serve(load_federation(file), file, server, check, quiet)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def server(context: typer.Context) -> None:
    """Start a Prefect server for several sites, with the options of `prefect server start`. It needs a password
    unless it listens on this machine only."""
    os.execv(sys.executable, [sys.executable, "-m", "photon_cli.prefect.server", *context.args])


@app.command()
def plan(
    file: File = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for scripts")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="also write a page (.html) or a picture (.svg)")] = None,
) -> None:
    """Predict memory, time and bytes from the file and from the rounds committed so far."""
    from photon_cli.plan import show_plan
    from photon_cli.plan_tree import show_tree_plan
    from schemas.reading.load import check_store, load_federation
    from schemas.reading.world import load_world

    federation = load_federation(file)
    check_store(federation, file)
    if federation.federations or federation.parent is not None:
        show_tree_plan(load_world(file), as_json, to)
        return
    show_plan(federation, file, as_json, to)


@app.command()
@chooses_model
def export(
    choice: Choice,
    to: Annotated[Path, typer.Option("--to", help="new folder for the model")],
    file: File = HERE,
    quiet: Quiet = False,
) -> None:
    """Write a model as a folder that Hugging Face's transformers loads."""
    from photon_cli.export import export as take_away
    from photon_cli.tree import reach_node

    take_away(reach_node(file, choice.member), choice, to, quiet)


@app.command()
@chooses_model
def generate(
    choice: Choice,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="text that the model continues")],
    file: File = HERE,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="maximum number of new tokens; default: 100, or fewer if no more fit")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="sampling temperature; 0 always takes the most likely token")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="sample from the k most likely tokens only; 0 means all")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the sampling")] = 17,
) -> None:
    """Print text from a model."""
    from photon_cli.export import TOKENS
    from photon_cli.export import generate as speak
    from photon_cli.tree import reach_node
    from photon_core.export.generate import Decoding

    node = reach_node(file, choice.member)
    if tokens is None:
        tokens = min(TOKENS, node.federation.model.max_seq_len - 1)
    speak(node, choice, prompt, Decoding(tokens, temperature, top_k, seed))


@app.command()
@chooses_model
def evaluate(
    choice: Choice,
    file: File = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for scripts")] = False,
    quiet: Quiet = False,
) -> None:
    """Show a model's loss and perplexity on held-out text: a site's own, or that of all sites of a federation."""
    from photon_cli.evaluate import evaluate as score
    from photon_cli.tree import reach_node

    score(reach_node(file, choice.member, below=True), choice, as_json, quiet)


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
    except OSError as error:  # a full disk, a folder without write permission
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"photon: {where}{cause(error) if foreign(error) else error.strerror or error}", err=True)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:  # Typer raises it in place of KeyboardInterrupt
            typer.echo("photon: interrupted. To continue from here, run the same command again", err=True)
        raise


def _exit_code(error: PhotonError) -> int:
    if isinstance(error, QuorumMissed):
        return EXIT_QUORUM
    if isinstance(error, StoreConflict):
        return EXIT_CONFLICT
    return EXIT_WRONG_USE if isinstance(error, ValueError) else 1
