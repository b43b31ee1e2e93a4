"""The house's own rules: imports point one way, files stay small, everything public is documented and typed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmfusion"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"errors", "version"}

# What each room may import from; the way of a batch.
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "losses": set(),
    "decoding": set(),
    "config": set(),
    "text": set(),
    "layers": set(),
    "fusion": {"layers"},
    "encoders": {"layers", "fusion"},
    "models": {"config", "layers", "fusion", "encoders", "decoding"},
    "convert": {"layers", "fusion", "encoders", "models"},
    "data": {"config", "text"},
    "evaluation": {"config", "text", "data", "losses", "models"},
    "explain": {"config", "text", "data", "layers", "models", "evaluation"},
    "training": {"config", "text", "data", "losses", "layers", "fusion", "models", "evaluation", "decoding"},
    "export": {"config", "text", "data", "layers", "encoders", "models", "decoding", "training", "explain"},
    "serving": {"data", "export"},
    "retrieval": {"config", "text", "data", "models", "export"},
    "tuning": {"config", "training"},
    "cli": {"config", "data", "evaluation", "explain", "export", "models", "retrieval", "serving", "training", "tuning", "text"},
}
KERAS_ONLY = ("layers", "fusion", "encoders", "models", "losses", "decoding", "convert")
# The one file that turns Keras code into a graph of whichever backend there is.
COMPILER = Path("decoding", "compiled.py")
HEAVY = ("tensorflow_text", "tensorflow_datasets", "keras_tuner", "torch", "transformers", "faiss", "matplotlib")


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            if node.module == "mmfusion":
                yield from ((f"mmfusion.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for module, line in imported_modules(path):
        top, _, rest = module.partition(".")
        if top == "mmfusion" and rest:
            target = rest.split(".")[0]
            assert target == room or target in BASE | MAY_IMPORT[room], f"{path}:{line}: {room} must not import {target}"
        if room in KERAS_ONLY and path.relative_to(PACKAGE) != COMPILER:
            assert top not in ("tensorflow", "tensorflow_text", "jax", "torch"), f"{path}:{line}: keras.ops only"
        if room in ("config", "errors", "version"):
            assert top not in ("tensorflow", "keras", "numpy"), f"{path}:{line}: recipes are read before TensorFlow"


def test_the_table_of_imports_has_no_circle():
    seen: dict[str, int] = {}

    def height(room: str, above: tuple[str, ...] = ()) -> int:
        assert room not in above, f"a circle: {' -> '.join((*above, room))}"
        if room not in seen:
            seen[room] = 1 + max((height(below, (*above, room)) for below in MAY_IMPORT[room]), default=0)
        return seen[room]

    for room in MAY_IMPORT:
        height(room)
    assert {room_of(path) for path in FILES} - {"__init__", "__main__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_small_and_documented(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500, "no file over 500 lines"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is"
    layers = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
        public_class = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for function in [node, *node.body] if public_class else [node]:
            if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                assert function.returns is not None, f"{function.name} does not say what it returns"
                assert ast.get_docstring(function), f"{function.name} has no docstring"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = {ast.unparse(base) for base in node.bases}
            small = (
                bases & {"NamedTuple", "Protocol", "Section", "Exception", "_Transformer", "MMFusionError"} or node.decorator_list
            )
            registered = any("register" in ast.unparse(item) for item in node.decorator_list)
            if registered or not small:
                layers.append(node.name)
    assert len(layers) <= 1, f"one public class a file, beside the tuples that it returns: {layers}"


def loaded_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*[name for name in sys.modules if '.' not in name])"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import mmfusion") & {"tensorflow", "keras", "numpy", *HEAVY}


def test_using_layers_loads_nothing_that_they_do_not_need():
    # Keras itself brings matplotlib along.
    assert loaded_after("import mmfusion; mmfusion.Attention; mmfusion.ImageTextModel") & set(HEAVY) <= loaded_after(
        "import keras"
    )


def test_help_is_quick_and_loads_no_tensorflow():
    command = [sys.executable, "-X", "importtime", "-m", "mmfusion", "--help"]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    assert "tensorflow" not in done.stderr and "Train a recipe" in done.stdout
    # Of a processor, since other tests run beside this one; some half a second on an idle machine.
    assert (after.children_user + after.children_system) - (before.children_user + before.children_system) < 2.0


def test_help_of_every_command_loads_no_tensorflow():
    code = """
from typer.testing import CliRunner
from typer.main import get_command
from mmfusion.cli.main import app
def walk(command, names=()):
    answer = CliRunner().invoke(app, [*names, "--help"])
    assert answer.exit_code == 0, (names, answer.output)
    for name, inner in getattr(command, "commands", {}).items():
        walk(inner, (*names, name))
walk(get_command(app))
"""
    assert not loaded_after(code) & {"tensorflow", "keras", "numpy", *HEAVY}


def test_the_examples_of_all_modules_are_run_with_the_tests():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'testpaths = ["tests", "mmfusion"]' in settings and "--doctest-modules" in settings


def test_every_public_name_is_there():
    import mmfusion

    for name in mmfusion.__all__:
        assert getattr(mmfusion, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mmfusion.nothing


def test_tests_mirror_the_package():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} - {"cli"}
    missing = [room for room in sorted(rooms) if not any((ROOT / "tests" / room).glob("test_*.py"))]
    assert not missing
