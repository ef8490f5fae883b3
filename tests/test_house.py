"""The house: which room may import which, what lies loose, and how long and wide a function may be."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["schemas", "photon_core", "tasks", "flows", "photon_cli"]
# From the lowest storey up; rooms of one line do not import each other. A room may import what is below it only.
FLOORS = """
schemas/errors
schemas/presets schemas/bounds schemas/protocol schemas/secrets schemas/server_errors
schemas/sections
schemas/federation schemas/manifests
schemas/view
schemas/reading
schemas/docs
photon_core/hashing photon_core/formatting
photon_core/errors
photon_core/files
photon_core/store photon_core/jobs
photon_core/tensors
photon_core/model
photon_core/data photon_core/hardware
photon_core/run
photon_core/evidence
photon_core/update
photon_core/aggregation
photon_core/training
photon_core/plan photon_core/export photon_core/report
tasks
flows
photon_cli
"""
LOOSE = {"errors", "hashing", "formatting", "files"}
CIRCLES: list[set[str]] = []  # may only shrink
TORCH = ("photon_core/training/", "photon_core/model/decoder.py", "photon_core/model/meters.py")
LINES, PARAMETERS = 60, 7
PAIRS = 10  # functions that take a federation and a site
LONG = {  # functions over LINES, with their lines: may only shrink
}
WIDE = {  # functions over PARAMETERS, with their number: may only shrink
}

# What only photon_core/run/paths.py may write: a folder or an object of a run.
RUN_PATH = re.compile(
    r"(^|/)(rounds|sites|regions|finished|members)/|/(rounds|sites|regions|finished|members)\b"
    r"|(^|/)(run|round|update|start|partial|removed)\.json|(?<!-)report\.html|evaluation-|cosines-"
)
NO_PATHS = {  # strings that only look like one: may only shrink
    "photon_core/evidence/trackers.py": 4,  # names of metrics
    "photon_core/run/start.py": 1,  # a key of a manifest
    "schemas/manifests.py": 1,  # a description
}
BY_STORE = {  # calls of a store's create and read that pass objects.py by: may only shrink
    "photon_cli/join.py": 1,  # a probe
    "photon_core/model/foreign.py": 1,  # a checkpoint's own files
    "photon_core/run/objects.py": 3,  # where all objects are created and read
}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Modules of this repository that a file imports, at any depth, under `if TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if (ROOT / f"{name.replace('.', '/')}.py").exists() else str(node.module) for name in whole
            ]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def room(name: str) -> str:
    """The folder, or the loose file, that a module belongs to."""
    parts = name.split(".")
    return "/".join(parts[:2]) if parts[0] in ("schemas", "photon_core") else parts[0]


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    tree = ast.parse(path.read_text("utf-8"))
    methods = {child for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            owner = next(
                (c.name + "." for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and node in c.body), ""
            )
            assert (node in methods) == bool(owner)
            yield f"{path.relative_to(ROOT).as_posix()}:{owner}{node.name}", node


def width(node: ast.FunctionDef) -> int:
    """Parameters of a function, without self and cls."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def test_rooms_import_downwards_only() -> None:
    floors = {name: number for number, line in enumerate(FLOORS.split("\n")) for name in line.split()}
    wrong = []
    for path in files(*PACKAGES):
        here = room(module(path))
        for name in imported(path):
            there = room(name)
            if name not in PACKAGES and here in floors and here != there and floors[here] <= floors[there]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_nothing_installed_imports_tests_or_benchmarks() -> None:
    texts = {path: path.read_text("utf-8") for path in files(*PACKAGES)}
    assert [path for path, text in texts.items() if "from tests" in text or "from benchmarks" in text] == []


def test_every_room_has_a_floor() -> None:
    floors = set(FLOORS.split())
    rooms = {room(module(path)) for path in files(*PACKAGES)} - {"schemas", "photon_core"}
    assert rooms == floors


def test_no_circle() -> None:
    below = {module(path): set(imported(path)) for path in files(*PACKAGES)}
    reach = {name: set(after) for name, after in below.items()}
    changed = True
    while changed:
        changed = False
        for after in reach.values():
            more = set().union(*(reach.get(name, set()) for name in after)) - after
            changed |= bool(more)
            after |= more
    circles = defaultdict(set)
    for name in reach:
        if name in reach[name]:
            circles[frozenset(other for other in reach[name] if name in reach.get(other, ()))].add(name)
    assert [set(circle) for circle in circles] == CIRCLES


def test_few_files_lie_loose() -> None:
    assert {path.stem for path in (ROOT / "photon_core").glob("*.py")} - {"__init__"} == LOOSE


def test_only_training_and_the_models_torch_files_import_torch() -> None:
    wrong = []
    for path in files("photon_core", "schemas", "tasks", "flows", "photon_cli"):
        name = path.relative_to(ROOT).as_posix()
        top = [
            node
            for node in ast.parse(path.read_text("utf-8")).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        heads = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        heads |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
        if heads & {"torch", "composer"} and not name.startswith(TORCH):
            wrong.append(name)
    assert wrong == []


def test_each_folder_says_what_belongs_there_and_what_does_not() -> None:
    for path in (ROOT / package for package in PACKAGES):
        for init in path.rglob("__init__.py"):
            text = ast.get_docstring(ast.parse(init.read_text("utf-8"))) or ""
            lines = [line for line in text.split("\n") if line]
            assert len(lines) == 3 and (lines[1].startswith("Here: ") or path.name == "photon_core"), init


def test_functions_fit_a_screen() -> None:
    found = {}
    for path in files(*PACKAGES):
        for name, node in functions(path):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > LINES:
                found[name] = lines
    assert {name: lines for name, lines in found.items() if lines > LONG.get(name, LINES)} == {}
    assert set(LONG) <= set(found), "strike out what is short now"


def test_a_site_is_handed_down_as_its_view() -> None:
    """Prefect's flows and the commands are given a file and a name; what lies below takes a SiteView."""
    pairs = []
    for path in files(*PACKAGES):
        for name, node in functions(path):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if {"federation", "site"} <= {argument.arg for argument in every}:
                pairs.append(name)
    assert len(pairs) <= PAIRS, pairs


def test_functions_take_few_parameters() -> None:
    found = {name: width(node) for path in files(*PACKAGES) for name, node in functions(path)}
    wide = {name: number for name, number in found.items() if number > PARAMETERS}
    assert {name: number for name, number in wide.items() if number > WIDE.get(name, PARAMETERS)} == {}
    assert set(WIDE) <= set(wide), "strike out what is narrow now"


def test_a_round_speaks_of_members_and_not_of_sites_with_streams() -> None:
    paths = [ROOT / "flows/federated_round.py", ROOT / "tasks/coordinator.py", ROOT / "tasks/remote/dispatch.py"]
    paths += [ROOT / "photon_core/run/sampling.py"]
    paths += [ROOT / f"photon_core/aggregation/{name}.py" for name in ("attempts", "gather", "round", "aggregate")]
    for path in paths:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert used.isdisjoint({"sites", "streams", "section"}), path


def test_paths_of_a_run_are_built_in_one_file() -> None:
    found: dict[str, int] = defaultdict(int)
    for path in files(*PACKAGES):
        tree = ast.parse(path.read_text("utf-8"))
        docs = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
                found[path.relative_to(ROOT).as_posix()] += bool(RUN_PATH.search(node.value))
    del found["photon_core/run/paths.py"]
    assert {name: count for name, count in found.items() if count} == NO_PATHS


def test_objects_of_a_run_are_created_and_read_in_one_file() -> None:
    found: dict[str, int] = defaultdict(int)
    for path in files("photon_core", "tasks", "flows", "photon_cli"):
        if not path.is_relative_to(ROOT / "photon_core/store"):
            calls = re.findall(r"store\.(?:create|read)\(", path.read_text("utf-8"))
            found[path.relative_to(ROOT).as_posix()] += len(calls)
    assert {name: count for name, count in found.items() if count} == BY_STORE


@pytest.mark.parametrize("word", ["past", "apart", "working", "put", "dots", "patience", "composing", "numbers"])
def test_files_are_named_with_the_fields_nouns(word: str) -> None:
    assert [path for path in files(*PACKAGES) if path.stem == word] == []


def test_kinds_of_events_are_defined_in_one_place() -> None:
    """Code that acts names a kind of the list; no other code has events or Prefect event names, or emits them."""
    found = {
        name: [path.relative_to(ROOT).as_posix() for path in files(*PACKAGES) if name in path.read_text("utf-8")]
        for name in ("class Kind(", "class Event", "emit_event", '"photon.site.left_out"')
    }
    assert found == {
        "class Kind(": ["photon_core/evidence/events.py"],
        "class Event": ["photon_core/evidence/events.py"],
        "emit_event": ["tasks/events.py"],
        '"photon.site.left_out"': ["tasks/events.py"],
    }


MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MADE = {"ContextVar", "partial", "frozenset", "Fact", "len"}  # calls whose results do not change


def test_tasks_keep_nothing_for_the_whole_process() -> None:
    """What flow runs share is in their runtime: no `global`, no cache, no object at the top that can change."""
    wrong = []
    for path in files("tasks"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Global) or (isinstance(node, ast.Attribute) and node.attr == "cache"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
        for node in tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            made = value.func if isinstance(value, ast.Call) else None
            name = made.id if isinstance(made, ast.Name) else getattr(made, "attr", None)
            constant = all(isinstance(target, ast.Name) and target.id.isupper() for target in _targets(node))
            if (made and name not in MADE) or (isinstance(value, MUTABLE) and not constant):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []
