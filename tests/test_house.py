"""The rules of the package: which way imports point, how much a folder and a file hold, names."""

import ast
import functools
import importlib
from pathlib import Path

import pytest

import stellarperceptron

PACKAGE = Path(stellarperceptron.__file__).parent
NAME = PACKAGE.name

# Rooms by floor, from the ground up. A module imports from its own floor and those below.
FLOORS = (
    {"utils"},
    {"instruments", "labels"},
    {"data"},
    {"network", "layers", "model_core", "nn_utils"},
    {"model"},
    {"training"},
    {"evaluation"},
)
# The published code fixes the address of this one, which draws what all floors make.
PLACED = {"utils.plotting": len(FLOORS) - 1}
# These may import from above within functions: `fit` trains, and published names stay importable.
LAZY = {"", "model", "nn_utils"}
# Modules whose names the published code fixes; they do not count as rooms of the first floor.
PUBLISHED_MODULES = {"model_core", "nn_utils"}


def module_name(path: Path) -> str:
    """Name of a module within the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> list[tuple[str, bool]]:
    """Modules of the package that a module imports, and whether it does so on being imported.

    What only a type checker reads (`if TYPE_CHECKING:`) does not count.
    """
    found = []

    def visit(node: ast.AST, at_once: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import in line {node.lineno}"
            joined = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [j if j[len(NAME) + 1 :] in MODULES else node.module for j in joined]
        for target in targets:
            if target.split(".")[0] == NAME:
                found.append((target[len(NAME) + 1 :], at_once))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not inside)

    visit(ast.parse(MODULES[name].read_text(encoding="utf-8")), True)
    return found


def floor(name: str) -> int:
    """Floor of a module; the package itself, which imports nothing at once, lies above all."""
    if name in PLACED:
        return PLACED[name]
    room = name.split(".")[0]
    numbers = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return numbers[0] if numbers else len(FLOORS)


def test_every_room_has_a_floor():
    rooms = {name.split(".")[0] for name in MODULES} - {""}
    assert rooms <= set().union(*FLOORS)


def test_imports_point_downwards():
    upwards = [
        f"{name} -> {target}" + ("" if at_once else " (within a function)")
        for name in MODULES
        for target, at_once in imports(name)
        if floor(target) > floor(name) and (at_once or name not in LAZY)
    ]
    assert not upwards, "imports from a higher floor: " + "; ".join(upwards)


def test_no_module_imports_the_package_itself():
    assert [name for name in MODULES if any(not target for target, _ in imports(name))] == []


def test_imports_make_no_circle():
    edges = {name: {target for target, at_once in imports(name) if at_once} for name in MODULES}
    while edges:  # take away what imports nothing that is left
        free = {name for name, targets in edges.items() if not targets & edges.keys()}
        assert free, f"these import each other: {sorted(edges)}"
        edges = {name: targets for name, targets in edges.items() if name not in free}


@functools.cache
def defined(name: str) -> set[str]:
    """Names that a module defines itself, in contrast to those that it imports."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_a_name_has_one_address():
    """Whoever needs a name imports it from the module that defines it."""
    root, elsewhere = PACKAGE.parents[1], []
    scripts = (
        p
        for f in ("dataset", "training", "results", "benchmarks")
        for p in root.glob(f"{f}/**/*.py")
    )
    for path in [*MODULES.values(), *scripts]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = getattr(node, "module", None) or ""
            source = module.removeprefix(f"{NAME}.")
            if not isinstance(node, ast.ImportFrom) or source not in MODULES or path == MODULES[""]:
                continue
            names = {alias.name for alias in node.names}
            names -= {name for name in names if f"{source}.{name}" in MODULES}
            elsewhere += [f"{path.name}: {source}.{name}" for name in names - defined(source)]
    assert not elsewhere, "imported from a module that imports them itself: " + ", ".join(elsewhere)


def test_no_folder_has_more_than_nine_rooms():
    for folder in {path.parent for path in MODULES.values()}:
        rooms = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        rooms |= {path.parent.name for path in folder.glob("*/__init__.py")}
        if folder == PACKAGE:
            rooms -= PUBLISHED_MODULES
        assert len(rooms) <= 9, f"{folder.name} has {len(rooms)} rooms: {sorted(rooms)}"


def test_no_file_is_longer_than_450_lines():
    tests = {path.name: path for path in Path(__file__).parent.rglob("*.py")}
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in {**MODULES, **tests}.items()
    }
    assert {name: lines for name, lines in lengths.items() if lines > 450} == {}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("", ["StellarPerceptron", "__version__"]),
        ("model", ["StellarPerceptron"]),
        ("model_core", ["StellarPerceptronCore"]),
        (
            "layers",
            [
                "NonLinearEmbedding",
                "StellarPerceptronEncoder",
                "StellarPerceptronDecoder",
                "StellarPerceptronTorchModel",
                "TransformerBlock",
            ],
        ),
        ("nn_utils", ["TrainingGenerator", "robust_mean_squared_error"]),
        ("utils.data_utils", []),
        ("utils.plotting", []),
    ],
)
def test_published_names_can_be_imported(module, names):
    imported = importlib.import_module(f"{NAME}.{module}".rstrip("."))
    assert [name for name in names if not hasattr(imported, name)] == []


def test_version_is_that_of_the_project():
    text = (PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{stellarperceptron.__version__}"\n' in text
