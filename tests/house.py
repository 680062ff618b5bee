"""The files of the package, the floors they stand on, and what each imports. The house test and others ask here."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "memory3"
#: Lowest first. Units of one floor do not import one another, unless they are files.
FLOORS = (
    {"errors", "checkout", "config", "types", "retention", "files", "sources", "overlap", "tokenizing", "onednn", "garbage"},
    {"attention"},
    {"codec"},
    {"text", "models"},
    {"encode"},
    {"bank"},
    {"answer", "decoding", "choosing", "presence", "prompt", "scoring"},
    {"recall"},
    {"parity", "proof", "asking", "llm"},
    {"calibration", "cluster"},
    {"training", "evaluation", "planner", "interpret", "preparing"},
    {"serving"},
    {"vllm"},
    {"benchmarks"},
    {"checking", "usefulness"},
    {"plugs"},
    {"demo"},
    {"cli"},
    {"__init__", "__main__"},
)


def module_name(path):
    """``model/gguf.py`` -> ``memory3.models.gguf``; a package's ``__init__.py`` has the package's name."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def tree(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(module):
    """The modules of memory3 that a file imports, anywhere in it: at the top, in functions, for type checking."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                origin = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [origin])])
            names |= {name if (name := f"{origin}.{alias.name}") in FILES else origin for alias in node.names}
    return {name for name in names if name.split(".")[0] == "memory3"}


def unit(module):
    """The folder or file at the root that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def floor(module):
    places = [number for number, units in enumerate(FLOORS) if unit(module) in units]
    assert places, f"{module}: give {unit(module)!r} a floor in {__name__}.FLOORS"
    return places[0]


def is_file(module):
    return unit(module) == "__init__" or (SOURCE / f"{unit(module)}.py").is_file()


def dotted(node):
    """``torch.load`` for the node of that expression."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "?")
