"""Who may import whom in the package, and what `import bssnet_zoo` costs."""
import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bssnet_zoo"
# from top to bottom, as in CONTRIBUTING.md: a room imports from those below it
ROOMS = (
    "__main__", "cli", "demo", "transformers", "hub", "training", "benchmark", "evaluation", "__init__", "inference",
    "deployment", "models", "metrics", "losses", "data", "layers", "distributed", "device", "files", "version")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file names in its imports, those inside functions too."""
    here = ("bssnet_zoo", *path.relative_to(PACKAGE).with_suffix("").parts)
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = (*here[:-node.level], *(node.module or "").split("."))
            names = [part for part in parts if part][1:] or [alias.name for alias in node.names]
            rooms.add(names[0])
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    below = ROOMS[ROOMS.index(room):]
    assert imported_rooms(path) <= set(below)


def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports, for types and inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = path.parents[node.level - 1].joinpath(*(node.module or "").split(".")).resolve()
            for each in (module, *(module / alias.name for alias in node.names)):
                found |= {file for file in (each.with_suffix(".py"), each / "__init__.py") if file.is_file()}
    return found


def test_no_circle_of_files():
    """An ``__init__.py`` may name the files beside it: what they import from other folders is what counts."""
    files = [path.resolve() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    graph = {path: {file for file in imported_files(path) if file.name != "__init__.py"} for path in files}
    TopologicalSorter(graph).prepare()  # raises CycleError with the files of a circle


def test_every_room_has_a_map():
    for init in PACKAGE.glob("*/__init__.py"):
        names = [path.stem for path in init.parent.glob("*.py") if path.stem != "__init__"]
        docstring = ast.get_docstring(ast.parse(init.read_text()))
        missing = [name for name in names if f"`{name}`" not in docstring]
        assert not missing or init.parent.name == "cli", (init, missing)


def first_import() -> tuple[float, list[str]]:
    """CPU seconds of a process from its start, as a share of those of its libraries; rooms that it has loaded."""
    rooms = "demo", "hub", "training", "benchmark", "evaluation", "cli", "deployment.export", "deployment.formats"
    code = ("from time import process_time; import sys, timm, torchvision; theirs = process_time(); import bssnet_zoo; "
            f"print(process_time() / theirs, *[r for r in {rooms} if 'bssnet_zoo.' + r in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    share, *loaded = run.stdout.split()
    return float(share), loaded


def test_import_is_light():
    """What disturbs one import disturbs the other. The better of two counts."""
    share, loaded = first_import()
    assert loaded == []
    assert share < 1.2 or first_import()[0] < 1.2
