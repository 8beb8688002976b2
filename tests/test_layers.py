"""The house rules that need no running: who imports whom, and how long a file may be."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import diffcli

pytestmark = pytest.mark.xdist_group("layers")  # the files of the package are parsed once
PACKAGE = Path(diffcli.__file__).parent
MAX_LINES = 350
MAX_FILES = 15  # of a folder; two parts of the package are lists of alike things
MANY_FILES = {"networks", "data"}
COMMON = {"__init__", "registry"}  # what every folder may have

# A part is a folder or file of diffcli/. It imports from itself and from rows below its own, never from its neighbours.
ROWS: list[set[str]] = [
    {"cli", "facade", "__main__"},
    {"engine"},
    {"interop"},
    {"preset"},
    {"tasks", "prep"},
    {"diffusion", "networks", "encoders", "data", "metrics", "optim", "ema", "checkpoint"},
    {"fields", "noise", "digest", "tensor_file", "torchvision_compat", "lookup", "eight_bit"},
    {"config_errors"},
    {"config", "transfer", "kmeans"},
    {"__init__"},
]
ROW = {part: number for number, parts in enumerate(ROWS) for part in parts}
NEIGHBOURS = {("__main__", "cli")}
LAZY = {("__init__", "facade"), ("__init__", "config")}  # what `import diffcli` offers without importing it
LIGHT = ["cli", "__main__"]  # --help takes 0.3 s
HEAVY = {"torch", "torchvision", "pydantic", "numpy", "imageio", "safetensors", "yaml", "webdataset", "torchmetrics"}


class Import(NamedTuple):
    """One module that a file imports."""

    module: str  # the whole dotted name
    line: int
    at_top: bool  # not inside a function or `if TYPE_CHECKING`


@cache
def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "presets" not in path.parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part_of(path: Path) -> str:
    """The folder below diffcli/ that a file lives in, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> list[Import]:
    """Every import in a file, wherever it stands."""
    return list(imports_below(parsed(path), top=True))


def imports_below(node: ast.AST, top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            for alias in child.names:  # `from diffcli import noise` imports diffcli.noise
                deeper = f"{child.module}.{alias.name}"
                yield Import(deeper if child.module == "diffcli" else str(child.module), child.lineno, top)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or type_checking(child)
            yield from imports_below(child, top and not inside)


def type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported_part(module: str) -> str | None:
    """The part of diffcli that a module belongs to; None for other packages. `from diffcli import __version__`: __init__."""
    first, _, rest = module.partition(".")
    if first != "diffcli":
        return None
    name = rest.split(".")[0]
    return name if name in ROW else "__init__"


def allowed(part: str, other: str) -> bool:
    return part == other or (part, other) in NEIGHBOURS or ROW[other] > ROW[part]


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_part_has_a_row():
    assert {part_of(path) for path in sources()} == set(ROW)


def test_a_file_imports_from_its_own_folder_or_from_rows_below():
    wrong = []
    for path in sources():
        part = part_of(path)
        for found in imports(path):
            other = imported_part(found.module)
            lazy = (part, other) in LAZY and not found.at_top
            if not (other is None or lazy or allowed(part, other)):
                wrong.append(f"{name(path)}:{found.line}: {part} imports {found.module}")
    assert wrong == []


ENGINE = ["draw", "run", "score"]  # folders of the engine; only the first may be imported by the others


def modules_of(path: Path) -> set[str]:
    """The modules of diffcli that a file imports, wherever the import stands, `if TYPE_CHECKING` included."""
    found = {each.module for each in imports(path)}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in MODULES and MODULES[name] != path}


MODULES = {".".join(["diffcli", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in sources()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The first circle of a graph that is found, without its start repeated; empty where there is none."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return trail[trail.index(node) :]
        if node in done:
            return []
        found = next(filter(None, (walk(other, [*trail, node]) for other in sorted(graph.get(node, ())))), [])
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in sorted(graph))), [])


def test_no_files_import_each_other_in_a_circle_not_even_for_types():
    assert circle({name: modules_of(path) for name, path in MODULES.items()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_folders_of_the_engine_know_drawing_alone():
    inside = [path for path in sources() if path.parent.parent.name == "engine"]
    known = {(path, module) for path in inside for module in modules_of(path) if module.startswith("diffcli.engine.")}
    folders = {(path, module): module.removeprefix("diffcli.engine.").split(".")[0] for path, module in known}
    wrong = [each for each in known if folders[each] in ENGINE[1:] and folders[each] != each[0].parent.name]
    assert inside
    assert wrong == []


def test_the_rule_itself_tells_right_from_wrong():
    assert allowed("engine", "tasks")
    assert allowed("diffusion", "diffusion")
    assert allowed("diffusion", "noise")
    assert not allowed("diffusion", "networks")
    assert not allowed("networks", "tasks")
    assert not allowed("config", "noise")
    tree = ast.parse("def f():\n    from diffcli import engine\nfrom diffcli.tasks.task import Task\nimport torch.nn")
    assert [(i.module, i.at_top) for i in imports_below(tree, True)] == [
        ("diffcli.engine", False),
        ("diffcli.tasks.task", True),
        ("torch.nn", True),
    ]


def test_no_file_is_longer_than_it_may_be():
    lines = {name(path): len(path.read_text().splitlines()) for path in sources()}
    assert {file: n for file, n in lines.items() if n > MAX_LINES} == {}


def test_torchvision_is_imported_only_after_its_compatibility_module():
    """Its compiled operators cannot be loaded beside a CPU-only torch; see diffcli/torchvision_compat.py."""
    wrong = []
    for path in sources():
        found = imports(path)
        ready = [each.line for each in found if each.module == "diffcli.torchvision_compat" and each.at_top]
        theirs = [each.line for each in found if each.module.partition(".")[0] == "torchvision"]
        wrong += [
            f"{name(path)}:{line}: first import diffcli.torchvision_compat"
            for line in theirs
            if line < min(ready, default=line + 1)
        ]
    assert wrong == []


@pytest.mark.parametrize("part", LIGHT)
def test_the_command_line_imports_nothing_heavy_at_the_top(part):
    """Neither torch nor pydantic, nor a part of diffcli that would import them."""
    seen: set[str] = set()

    def visit(path: Path) -> None:
        if path in seen:
            return
        seen.add(path)
        for found in imports(path):
            if not found.at_top:
                continue
            assert found.module.partition(".")[0] not in HEAVY, f"{name(path)}:{found.line} imports {found.module}"
            if imported_part(found.module) is not None:
                relative = found.module.replace(".", "/").removeprefix("diffcli").removeprefix("/")
                target = PACKAGE / f"{relative}.py"
                visit(target if target.is_file() else PACKAGE / "__init__.py")

    for path in sources():
        if part_of(path) == part:
            visit(path)
    assert seen


def test_randomness_is_derived_and_never_seeded_globally():
    """One exception: the engine draws the first weights from torch's generator, inside a fork of its state."""
    seeding = [
        f"{name(path)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in ("manual_seed", "manual_seed_all", "seed_all")
    ]
    assert len(seeding) <= 1, seeding
    assert all(place.startswith("engine/") for place in seeding), seeding


def test_no_name_stands_for_two_classes_or_two_modules():
    """Two folders may each have their registry: it is what a folder offers, as its __init__ is."""
    classes: dict[str, list[str]] = {}
    modules: dict[str, list[str]] = {}
    for path in sources():
        if path.stem not in COMMON:
            modules.setdefault(path.stem, []).append(name(path))
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(name(path))
    for found in (classes, modules):
        assert not {word: places for word, places in found.items() if len(places) > 1}


def test_no_folder_holds_more_files_than_one_finds_his_way_in():
    count = Counter(path.parent for path in sources() if path.stem != "__init__")
    assert {name(folder): n for folder, n in count.items() if n > MAX_FILES and name(folder) not in MANY_FILES} == {}
