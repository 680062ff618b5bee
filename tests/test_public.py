"""The public surface: what it is, that it is documented, and that looking at it costs nothing."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import memory3
from memory3 import errors

SURFACE = [
    "Answer",
    "Bank",
    "Budget",
    "Citation",
    "Document",
    "Memory3",
    "MemoryConfig",
    "Reference",
    "__version__",
    "read_documents",
]


def test_the_surface_is_exactly_this():
    assert sorted(memory3.__all__) == sorted([*SURFACE, *errors.__all__])


def test_the_whole_error_tree_is_public():
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert tree == set(errors.__all__)
    assert all(getattr(memory3, name) is getattr(errors, name) for name in errors.__all__)


@pytest.mark.parametrize("name", memory3.__all__)
def test_every_name_can_be_had_and_is_documented(name):
    value = getattr(memory3, name)
    assert name in dir(memory3)
    if name != "__version__":
        assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("name", ["Bank", "Memory3", "MemoryConfig"])
def test_every_public_method_is_documented(name):
    for method, value in inspect.getmembers(getattr(memory3, name)):
        if not method.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{name}.{method} has no docstring"


def test_from_import_star_gives_the_surface():
    names: dict = {}
    exec("from memory3 import *", names)
    assert set(memory3.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Memory4'"):
        memory3.Memory4  # noqa: B018


def test_type_checkers_see_the_same_names():
    """What is imported for type checkers is what `__getattr__` gives."""
    source = ast.parse(Path(memory3.__file__).read_text())
    block = next(node for node in source.body if isinstance(node, ast.If))
    seen = {"__version__"}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.name for alias in node.names}
    assert seen == set(memory3.__all__)


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert memory3.__version__ == version("memory3")


def test_importing_loads_next_to_nothing():
    code = "import json, sys, memory3; dir(memory3); print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert [name for name in loaded if name.startswith("memory3")] == ["memory3"]
    assert not {"torch", "transformers", "numpy", "lancedb", "typer", "rich"} & set(loaded)
