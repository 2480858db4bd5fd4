"""The house: who may import whom, how large rooms are, and that names say which thing they are."""

import ast
import importlib
import pkgutil
from pathlib import Path

import cflow

FOLDER = Path(cflow.__file__).parent
# Every room imports only from rooms behind it.
ORDER = [
    "__main__", "cli", "testing", "integrations", "density", "training", "plot", "metrics", "data", "objectives",
    "continuous", "ctmc", "guidance", "divergence", "discrete", "standardised_context", "invertible_flow", "flow",
    "distribution", "support", "calls", "couplings", "paths", "manifolds", "fields", "bijections", "solvers", "bases",
    "times", "lost_rows", "io", "claims", "record", "modes", "keywords", "draws", "shapes", "registry",
    "building", "storage", "arguments", "interrupts",
]  # fmt: skip
# What the whole package is asked for, such as its version or the classes that its rooms register.
WHOLE = {"integrations", "cli"}


def imports(file):
    """Yields every module of the package that a file imports, wherever in it, and how many dots it writes before it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.module or "", node.level
            elif node.module == "cflow":
                yield from ((f"cflow.{each.name}", 0) for each in node.names)
            elif node.module and node.module.startswith("cflow."):
                yield node.module, 0
        elif isinstance(node, ast.Import):
            yield from ((each.name, 0) for each in node.names if each.name.split(".")[0] == "cflow")


def files():
    return [file for file in FOLDER.rglob("*.py") if file != FOLDER / "__init__.py"]


def room_of(file):
    return file.relative_to(FOLDER).with_suffix("").parts[0]


def test_every_room_has_its_place():
    assert sorted(ORDER) == sorted({room_of(file) for file in files()})


def test_imports_point_down_only():
    rank = {room: place for place, room in enumerate(ORDER)}
    wrong = []
    for file in files():
        room = room_of(file)
        for module, _ in imports(file):
            other = module.split(".")[1] if "." in module else None
            if other is None and room in WHOLE:
                continue
            if other is None or (other != room and rank[other] < rank[room]):
                wrong.append(f"{file.relative_to(FOLDER)} imports {module}")
    assert not wrong


def test_imports_are_written_in_one_way():
    assert not [str(file) for file in FOLDER.rglob("*.py") if any(level for _, level in imports(file))]


def test_recipes_import_from_rooms_alone():
    recipes = list((Path(__file__).parents[1] / "recipes").glob("*.py"))
    assert recipes
    assert not [f"{file.name}: {m}" for file in recipes for m, _ in imports(file) if m.count(".") > 1]


def test_no_flat_room_holds_more_than_twenty_files():
    folders = {file.parent for file in files()}
    assert max(len([each for each in folder.glob("*.py") if each.name != "__init__.py"]) for folder in folders) <= 20


def test_a_function_does_not_hide_a_module():
    """``cflow.training.fit`` is a function, so no module may have that name, and so on."""
    hidden = []
    for package in [cflow, *(importlib.import_module(f"cflow.{each.name}") for each in rooms())]:
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            shown = vars(package).get(module.name)
            if shown is not None and not hasattr(shown, "__spec__"):
                hidden.append(f"{package.__name__}.{module.name}")
    assert not hidden


def rooms():
    return [each for each in pkgutil.iter_modules([str(FOLDER)]) if each.ispkg]


def test_what_is_public_is_there_after_importing_the_package():
    for room in rooms():
        if room.name != "cli":
            assert getattr(cflow, room.name).__name__ in (f"cflow.{room.name}",)
    assert cflow.divergence.Exact is importlib.import_module("cflow.divergence").Exact
    assert cflow.guidance.ClassifierFree is importlib.import_module("cflow.guidance").ClassifierFree


def test_types_are_published():
    assert (FOLDER / "py.typed").is_file()
