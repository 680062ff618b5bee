"""How far public names are documented: parameters of functions and methods, and docstrings that only point elsewhere.

python tests/docstrings.py [FOLDER] [--left]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(node: Function, *, method: bool) -> list[str]:
    """Names a caller passes: without self or cls, and without those that begin with an underscore."""
    plain = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    static = any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list)
    return [n for n in (plain[1:] if method and not static else plain) + [a.arg for a in node.args.kwonlyargs] if n[0] != "_"]


def inherits(node: Function) -> bool:
    """Whether another docstring says it all: of the method that is overridden, or of the function that has these overloads.

    A public method without a docstring overrides one: ruff demands one everywhere else (D102).
    """
    return ast.get_docstring(node) is None


def public(path: Path) -> Iterator[tuple[str, Function | ast.ClassDef, bool]]:
    """Public functions, classes and methods of a file: name, node, and whether it is a method."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for part in node.body:
                if isinstance(part, Function) and not part.name.startswith("_") and not inherits(part):
                    yield f"{node.name}.{part.name}", part, True


def documented(node: Function, names: list[str]) -> bool:
    """Whether a docstring has a section of arguments or names every parameter."""
    text = ast.get_docstring(node) or ""
    return "Args:" in text or all(re.search(rf"\b{re.escape(name)}\b", text) for name in names)


def points_elsewhere(node: ast.AST) -> bool:
    """Whether a docstring is nothing but one short sentence that begins with 'See' or 'As'."""
    text = " ".join((ast.get_docstring(node) or "").split())  # type: ignore[arg-type]
    return bool(re.match(r"(See|As) ", text)) and ". " not in text and len(text) < 100


def survey(folder: Path, without: str = "cli") -> tuple[list[str], list[str], int]:
    """Places whose parameters are not documented, places that point elsewhere, and how many functions have two parameters
    or more.

    Commands, in the folder ``without``, document each option in its own help.
    """
    missing, pointing, total = [], [], 0
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] == without:
            continue
        for name, node, method in public(path):
            place = f"{path.relative_to(folder)}:{node.lineno} {name}"
            if points_elsewhere(node):
                pointing.append(place)
            if isinstance(node, Function) and len(names := parameters(node, method=method)) >= 2:
                total += 1
                if not documented(node, names):
                    missing.append(f"{place}({', '.join(names)})")
    return missing, pointing, total


if __name__ == "__main__":
    folders = [a for a in sys.argv[1:] if not a.startswith("--")]
    missing, pointing, total = survey(Path(folders[0]) if folders else Path(__file__).parents[1] / "src" / "memory3")
    print(f"{total - len(missing)} of {total} document their parameters; {len(pointing)} docstrings only point elsewhere")
    if "--left" in sys.argv:
        print("\n".join([*missing, "", *pointing]))
