import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spp_jax

PACKAGE = Path(spp_jax.__file__).parent

USE_THE_OP = """
import sys
import numpy as np
import spp_jax
spp_jax.spatial_pyramid_pool(np.ones((1, 5, 7, 2), np.float32), [[3, 4]])
spp_jax.plan_buckets([(3, 4)], 1)
print(sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_using_the_op_loads_neither_data_sets_nor_checkpoints_nor_pictures():
    loaded = subprocess.run(
        [sys.executable, "-c", USE_THE_OP], capture_output=True, text=True, check=True
    ).stdout
    for name in ("tensorflow_datasets", "tensorflow", "orbax", "PIL", "flax", "torch", "tyro"):
        assert f"'{name}'" not in loaded


def test_the_command_that_scores_loads_nothing_that_scoring_does_not_use():
    """It would be what a person waits for each time."""
    listed = "import sys, spp_jax.cli.score; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout
    others = ("scipy", "matplotlib", "tensorflow_datasets", "pandas", "pyarrow", "ray", "skimage", "torch")
    for name in others:
        assert f"'{name}'" not in loaded


def test_every_public_name_is_there_and_says_what_it_is():
    for name in spp_jax.__all__:
        documented = inspect.getdoc(getattr(spp_jax, name))
        assert documented, name
        assert documented.splitlines()[0].endswith((".", "``.")), f"{name}: {documented.splitlines()[0]}"


def test_options_are_keyword_only_and_public_functions_document_every_argument():
    for name in spp_jax.__all__:
        function = getattr(spp_jax, name)
        if not inspect.isfunction(function):
            continue
        documented = inspect.getdoc(function) or ""
        for parameter in inspect.signature(function).parameters.values():
            assert f"{parameter.name}:" in documented, f"{name} does not say what {parameter.name} is"
            if parameter.default is not inspect.Parameter.empty and parameter.name != "sizes":
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY or name == "num_bins", (
                    f"{name}: {parameter.name} is optional and should be keyword-only"
                )


@pytest.mark.parametrize("module", ["bins", "op", "reductions", "windows"])
def test_the_examples_of_the_op_give_what_they_say(module):
    found = doctest.testmod(importlib.import_module(f"spp_jax.pooling.{module}"))
    assert found.attempted
    assert not found.failed


def programs() -> list[Path]:
    """All files of the checkout, or of what is installed, that hold our functions."""
    beside = [PACKAGE.parent / name for name in ("benchmarks", "examples")]
    return sorted(file for folder in (PACKAGE, *beside) for file in folder.rglob("*.py"))


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Of a function, its docstring aside."""
    first = function.body[0]
    said = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
    return (function.end_lineno or 0) - function.lineno + 1 - said


@pytest.mark.parametrize("file", programs(), ids=lambda file: str(file.relative_to(PACKAGE.parent)))
def test_no_function_is_longer_than_60_lines_or_rebinds_names_of_another(file):
    tree = ast.parse(file.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [function.name for function in functions if lines(function) > 60] == []
    assert not any(isinstance(node, ast.Nonlocal) for node in ast.walk(tree))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(spp_jax, "spatial_pyramid_pooling")


ROOMS = (
    ("cli",),
    ("run",),
    ("scoring",),
    ("training",),
    ("models",),
    ("layers", "data"),
    ("depthwise", "compilation", "checkpoints"),
    ("config",),
    ("pooling", "padded", "buckets", "metrics", "addresses"),
    ("registry",),
    ("errors", "names", "whole_files"),
)
"""Folders and files of spp_jax, from top to bottom: a room imports those of lower rows, not of its own."""

KNOWS: dict[str, set[str]] = {
    "layers": {"depthwise", "padded", "pooling"},
    "compilation": {"buckets", "padded", "config", "errors", "whole_files"},
    "checkpoints": {"buckets", "addresses", "config", "registry", "errors"},
    "pooling": set(),
    "padded": set(),
    "buckets": set(),
    "metrics": set(),
}
"""Where a room knows fewer than those."""

OUTSIDE = {"jax", "numpy", "jaxtyping"}
"""All that the op stands on, the standard library aside."""


def imports(file: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, by their full names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports hide where a name comes from"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def upwards() -> set[tuple[str, str]]:
    """(file, room) for each import that its room may not have."""
    row = {name: number for number, names in enumerate(ROOMS) for name in names}
    wrong = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if own in (
            "__init__",
            "__main__",
            "testing",
        ):  # what is public, and what holds rooms to their promises
            continue
        assert own in row, f"{file.relative_to(PACKAGE)}: add it to ROOMS"
        for other in {room(name) for name in imports(file) if name.split(".")[0] == "spp_jax"} - {own}:
            known = other in row and row[other] > row[own] and other in KNOWS.get(own, row)
            if not known:
                wrong.add((str(file.relative_to(PACKAGE)), other))
    return wrong


def test_no_room_imports_one_above_it_or_beside_it():
    assert not upwards()


def test_files_of_the_op_import_downwards_and_nothing_but_jax_and_numpy():
    files = sorted((PACKAGE / "pooling").glob("*.py"))
    below = {}
    for file in files:
        names = set(imports(file))
        foreign = {name.split(".")[0] for name in names} - {"spp_jax", *sys.stdlib_module_names}
        assert foreign <= OUTSIDE, file.name
        below[file.stem] = {name.split(".")[2] for name in names if name.startswith("spp_jax.pooling.")}
    done: set[str] = set()
    while left := below.keys() - done:
        free = {name for name in left if below[name] <= done}
        assert free, f"a circle among {sorted(left)}"
        done |= free
