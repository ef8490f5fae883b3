"""What must hold of the repository as a whole: packages, pins, imports, first lines, light commands."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGES = ["schemas", "photon_core", "tasks", "flows", "photon_cli"]  # from the lowest storey up
NOT_INSTALLED = ["benchmarks", "tests"]
HEAVY = ["torch", "composer", "streaming", "prefect", "great_expectations", "transformers", "pandas", "pyarrow"]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def requirements() -> dict[str, Requirement]:
    found = [Requirement(text) for text in project()["project"]["dependencies"]]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text("utf-8").split("\n")
    pairs = [line.split("==") for line in lines if line.strip()]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def sources(*folders: str) -> list[Path]:
    """Python files below the folders, without hidden ones (environments)."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name of the module"
            yield node.module or ""


def test_the_wheel_holds_the_packages() -> None:
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")} - set(NOT_INSTALLED)
    packages = project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(there) == sorted(PACKAGES)


def test_the_command_is_where_the_wheel_says() -> None:
    module, function = project()["project"]["scripts"]["photon"].split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text("utf-8"))
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(
    ("name", "admitted", "refused"),
    [
        ("prefect", ["3.8.8"], ["3.8.7", "3.9.0"]),
        ("fastapi", ["0.139.0", "0.150.0"], ["0.138.0", "0.151.0", "0.165.0"]),
        ("sqlalchemy", ["2.0.58"], ["2.1.0"]),
        ("torch", ["2.6.0", "2.7.0"], ["2.5.1", "2.7.1"]),
        ("mosaicml", ["0.32.1"], ["0.32.0"]),
        ("mosaicml-streaming", ["0.13.0"], ["0.12.0"]),
        ("s3fs", ["2026.9.0"], ["0.4.2", "2025.12.0"]),
        ("great-expectations", ["1.24.1"], ["1.24.0", "2.0.0"]),
    ],
)
def test_pins(name: str, admitted: list[str], refused: list[str]) -> None:
    specifier = requirements()[name].specifier
    assert [version for version in admitted if version not in specifier] == []
    assert [version for version in refused if version in specifier] == []


def test_other_systems_and_pythons_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    make = ["make", f"VENV={tmp_path / 'venv'}", "lint"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    made = subprocess.run(make, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert made.returncode and "Photon runs on Linux only, and this is Darwin" in made.stdout
    code = "import sys; sys.platform = 'darwin'; from photon_cli.main import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr == "photon: Photon runs on Linux only, and this is darwin\n"
    assert (
        "3.11.9" in (pythons := SpecifierSet(project()["project"]["requires-python"])) and "3.12.1" not in pythons
    )
    assert "Linux" in (ROOT / "README.md").read_text("utf-8")


def test_the_lock_is_names_and_versions_only() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    odd = [
        line for line in text.splitlines() if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][A-Za-z0-9.+]*", line)
    ]
    assert odd == [], "no addresses, options or comments in requirements.lock"


def test_the_lock_answers_pyproject() -> None:
    have = locked()
    for name, requirement in requirements().items():
        assert name in have, f"{name} is in pyproject.toml and not in requirements.lock; run `make lock`"
        assert have[name] in requirement.specifier, (
            f"requirements.lock has {name} {have[name]}, against {requirement}"
        )


def test_the_lock_is_what_is_installed() -> None:
    from importlib.metadata import version

    have = locked()
    for name in requirements():
        assert Version(version(name)).public == have[name].public, f"{name}: run make to install requirements.lock"


def test_below_the_tasks_nothing_knows_prefect() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources("photon_core", "schemas")
        if any(module.split(".")[0] == "prefect" for module in imports(path))
    ]
    assert wrong == []


def test_one_helper_writes_whole_and_durable_and_only_folders_of_our_own_are_removed_whole() -> None:
    """What takes a folder's name from elsewhere goes through photon_core/files.py, which removes by file names."""
    found: dict[str, set[str]] = {"os.fsync(": set(), "shutil.rmtree(": set()}
    for path in sources(*PACKAGES):
        for call, names in found.items():
            if call in path.read_text("utf-8"):
                names.add(path.relative_to(ROOT).as_posix())
    assert found["os.fsync("] == {"photon_core/files.py", "photon_core/store/local.py"}
    made_there = {
        f"photon_core/{name}.py" for name in ("jobs/server", "jobs/launcher", "jobs/scratch", "training/train")
    }
    assert found["shutil.rmtree("] == {*made_there, "photon_core/export/export.py"}


def test_every_file_says_what_it_is_for_and_is_one_idea() -> None:
    for path in sources(*PACKAGES, *NOT_INSTALLED):
        text = path.read_text("utf-8")
        name = path.relative_to(ROOT)
        lines = text.splitlines()
        assert len(lines) <= 500, f"{name} has {len(lines)} lines; a file is one idea in at most 500"
        if not text.strip():
            continue
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        assert len(first) > 10, f"{name}: the first line must say what the file is for"
        assert lines[0].startswith(('"""', 'r"""', "#!")), f"{name}: the first line must be the docstring's"


def test_test_folders_are_no_packages_and_mirror_the_tree() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    folders = {path.parent.relative_to(ROOT / "tests") for path in sources("tests")}
    strange = [str(f) for f in folders if f.parts and f.parts[0] in PACKAGES and not (ROOT / f).is_dir()]
    assert strange == []


def run_light(arguments: list[str], folder: Path) -> tuple[int, str, list[str]]:
    """Run the command in a separate process: its exit code, its output, and which heavy modules it imported."""
    code = (
        "import sys\n"
        f"sys.argv = ['photon', *{arguments!r}]\n"
        "from photon_cli.main import main\n"
        "code = 0\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    code = end.code or 0\n"
        f"print(code, *sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"})  # fmt: skip
    *output, last = done.stdout.splitlines()
    exit_code, *heavy = last.split()
    return int(exit_code), "\n".join(output) + done.stderr, heavy


@pytest.mark.parametrize(
    "command", ["", "demo", "prepare", "run", "status", "gc", "plan", "export", "generate", "evaluate"]
)
def test_help_is_light(command: str, tmp_path: Path) -> None:
    code, output, heavy = run_light([*command.split(), "--help"], tmp_path)
    assert (code, heavy) == (0, [])
    assert "Usage: photon" in output


def test_version_is_light(tmp_path: Path) -> None:
    assert run_light(["--version"], tmp_path) == (0, f"photon {project()['project']['version']}", [])


def test_status_is_light(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(
        "run: r\nstore: store\ntokenizer: bytes\nmodel: {n_layers: 1, d_model: 32, n_heads: 2}\n"
        "rounds: {count: 1}\nlocal: {steps: 1, batch_size: 1}\n"
        "sites: [{name: a, streams: [{name: s, source: s.txt}]}]\n"
    )
    code, output, heavy = run_light(["status", "federation.yaml"], tmp_path)
    assert heavy == []
    assert "Traceback" not in output
    assert code in (0, 1, 2)


@pytest.mark.slow
def test_prefects_server_starts_from_the_lock(tmp_path: Path) -> None:
    """fastapi releases that prefect admits break its server's import; the pin keeps them out."""
    code = "from prefect.server.api.server import create_app; print(type(create_app()).__name__)"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path),
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["FastAPI"]


def test_what_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    found = re.findall(rf"`((?:{'|'.join([*PACKAGES, *NOT_INSTALLED])})/[\w/]+\.\w+)(?:::(\w+))?`", text)
    assert len(found) > 30
    for path, test in found:
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"
