"""The plan of the house: imports point one way, modules and functions stay short, settings need no JAX."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A package may import those of its own rank and below.
RANKS = {"model.ops": 0, "model": 1, "data": 2, "train": 3, "configs": 4, "experiments": 4}
PACKAGES = ("configs", "data", "experiments", "model", "train")
MODULES = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
SETTINGS = (
    "model.config",
    "data.cli",
    "data.config",
    "data.errors",
    "data.schema",
    "data.settings",
    "train.checks",
    "train.config",
    "train.duration",
    "train.errors",
    "train.resume",
)
RECIPES = [path for path in MODULES if path.parts[0] == "configs"]
MAX_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 400, 50, 12
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, `from a import b` counting as `a.b`."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def rank(name: str) -> int | None:
    prefixes = (name.split(".")[0], ".".join(name.split(".")[:2]))
    return min((RANKS[prefix] for prefix in prefixes if prefix in RANKS), default=None)


def functions(path: Path):
    return (node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS))


def body_lines(function) -> int:
    """Lines of a function, its docstring not counted: explaining has no limit."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def every(found) -> str:
    return "\n".join(found)


def test_imports_point_one_way():
    wrong = [
        f"{path} imports {name}"
        for path in MODULES
        for name in sorted(imported(path))
        if name.startswith(".") or (rank(name) is not None and rank(name) > rank(name_of(path)))
    ]
    assert not wrong, every(wrong)


def test_nothing_imports_tensorflow_or_torch():
    banned = ("tensorflow", "torch")
    peers = ("experiments/bench_rows.py",)  # nanoGPT's sampling, which `make bench-data` runs in its own environment
    modules = [path for path in MODULES if str(path) not in peers]
    wrong = [f"{path} imports {name}" for path in modules for name in imported(path) if name.split(".")[0] in banned]
    assert not wrong, every(wrong)


def test_modules_are_short():
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in MODULES}
    long = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES]
    assert not long, every(long)


def test_functions_are_short():
    long = [
        f"{path}:{function.lineno} {function.name}: {body_lines(function)} lines"
        for path in MODULES
        for function in functions(path)
        if body_lines(function) > MAX_FUNCTION_LINES
    ]
    assert not long, every(long)


def test_functions_take_few_arguments():
    def count(function):
        given = function.args
        return len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)

    long = [
        f"{path}:{function.lineno} {function.name}: {count(function)} arguments"
        for path in MODULES
        for function in functions(path)
        if count(function) > MAX_ARGUMENTS
    ]
    assert not long, every(long)


def test_packages_are_namespaces():
    assert not [path for path in MODULES if path.name == "__init__.py"]


def without_jax(code: str):
    """Run `code` in a fresh interpreter, which must not have imported JAX by its end."""
    check = f"{code}; import sys; found = {{'jax', 'jaxlib', 'flax'}} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_need_no_jax():
    without_jax(f"import {', '.join(SETTINGS)}")


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipes_need_no_jax(path):
    without_jax(f"import runpy; runpy.run_path({str(path)!r})")
