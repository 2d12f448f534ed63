"""Rules that hold for the whole house: who may import whom, what costs time at start, what importing may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "services": {"services", "annotate", "common"},
    "annotate": {"annotate", "common"},
    "train": {"train", "common"},
    "common": {"common"},
}
# The rooms of each big package, top to bottom: a room imports from those below it, and from itself.
ROOMS = {
    "annotate": [{"cli"}, {"views", "run"}, {"groupers"}, {"tokens", "models"}, {"records"}],
    "train": [
        {"cli"},
        {"completion"},
        {"sweeps", "launch", "evaluation", "comparison", "inspection", "studies"},
        {"run"},
        {"loop"},
        {"reports"},
        {"objectives"},
        {"data"},
        {"settings"},
    ],
}
HEAVY = {"torch", "transformers", "trl", "ray", "datasets", "pyarrow", "fastapi"}


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere, inside functions and by literal name too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return names


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a file imports."""
    return {name.split(".")[0] for name in imported_modules(path)}


def climbing(path: Path, package: str, rooms: list[set[str]]) -> set[str]:
    """Return the modules that a file of a room imports from a room that is not below it.

    What a registry names in strings, to be imported when it is asked for, is no import of its file.
    """
    level = {room: index for index, names in enumerate(rooms) for room in names}
    inside = [part.removesuffix(".py") for part in path.relative_to(ROOT / package).parts]
    if inside[0] == "__init__":
        return set()
    assert inside[0] in level or inside[0] == "sample", f"{path}: {inside[0]} is no room of the design"
    return {
        name
        for name in imported_modules(path)
        if name.startswith(f"{package}.") and (room := name.split(".")[1]) != inside[0]
        if level.get(room, -1) <= level.get(inside[0], len(rooms))
    }


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        crossing = imported(path) & set(MAY_IMPORT) - MAY_IMPORT[package]
        assert not crossing, f"{path.relative_to(ROOT)} imports {crossing}"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_downwards(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        climbs = climbing(path, package, ROOMS[package])
        assert not climbs, f"{path.relative_to(ROOT)} imports {sorted(climbs)}"


def test_the_check_of_rooms_sees_a_climb(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_house.ROOT", tmp_path)
    path = tmp_path / "train" / "data" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("from train.settings import flags\n\n\ndef f():\n    from train.loop import trainer\n")
    assert climbing(path, "train", ROOMS["train"]) == {"train.loop", "train.loop.trainer"}


def test_the_check_sees_imports_inside_functions(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from train.data.loading import x\n    import services.app\n")
    assert imported(path) == {"train", "services"}


def test_common_is_light():
    for path in (ROOT / "common").rglob("*.py"):
        assert not imported(path) & {"torch", "ray", "fastapi", "uvicorn", "transformers"}, path


@pytest.mark.parametrize("command", ["annotate", "train"])
def test_help_imports_nothing_heavy(command):
    code = (
        f"import sys; sys.argv = ['{command}', '--help']\n"
        f"from {command}.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "run" in result.stdout
    assert "HEAVY []" in result.stdout, result.stdout[-300:]


def test_every_module_imports_and_does_nothing_else():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
    )
    code = f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == ""
