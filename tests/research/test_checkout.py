"""Research is reached from a checkout, through one helper, and a package without it says so in one line."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from house import FILES, dotted, tree
from typer.testing import CliRunner

from memory3 import benchmarks, checkout
from memory3.cli.app import app

ROOT = Path(__file__).parents[2]
#: The thin entries: nothing else of the package asks for research.
ENTRIES = {"memory3.benchmarks", "memory3.cli.report", "memory3.cli.train.two_stage"}


def imports(node: ast.AST) -> list[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def calls(module: str) -> list[ast.Call]:
    """Where a module asks for research."""
    return [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call) and dotted(node.func) == "research"]


@pytest.mark.parametrize("module", FILES)
def test_the_package_imports_no_research(module: str) -> None:
    """But through `memory3.checkout.research`, from the entries, in their functions."""
    assert not [name for node in ast.walk(tree(module)) for name in imports(node) if name.split(".")[0] == "research"]
    asked = calls(module)
    assert bool(asked) == (module in ENTRIES)
    within = {id(part) for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef) for part in ast.walk(node)}
    assert {id(call) for call in asked} <= within


def test_importing_everything_loads_no_research() -> None:
    loads = (
        f"import importlib, sys; [importlib.import_module(n) for n in {sorted(ENTRIES)}]; assert 'research' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", loads], check=True, timeout=300)


def test_research_is_not_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    (where,) = project["packages"]["find"]["where"]
    assert {path.parent.name for path in (ROOT / where).glob("*/__init__.py")} == {"memory3"}
    assert set(project["package-data"]) == {"memory3"}


def test_every_benchmark_of_research_is_there() -> None:
    names = {path.stem for path in (ROOT / "research" / "benchmarks").glob("*.py") if "OPTIONS: dict" in path.read_text()}
    assert names == benchmarks.RESEARCH
    assert set(benchmarks.BENCHMARKS) >= benchmarks.RESEARCH


@pytest.mark.parametrize(
    "command",
    [
        "bench front",
        "bench overlap",
        "report results --out all.md",
        "train two-stage --out stages --data texts.jsonl",
    ],
)
def test_without_a_checkout_the_command_says_so(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text('{"suite": "qa"}')
    (tmp_path / "texts.jsonl").write_text('{"text": "One."}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 2
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    name = " ".join(command.split()[:2]).replace("report results", "report")
    assert line.startswith(f"error: `memory3 {name}` is research")
    assert "in a checkout of the repository" in line


def test_benchmarks_of_the_package_need_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    for name in set(benchmarks.BENCHMARKS) - benchmarks.RESEARCH:
        with pytest.raises(ValueError, match="has no option other"):
            benchmarks.run(name, {"other": "1"})
