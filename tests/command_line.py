"""Commands run in this process, and the folder, bank and embedder that tests of them start from."""

from __future__ import annotations

import json
import re

import pytest
from bank_writer import HashingEmbedder
from typer.testing import CliRunner

from memory3.bank.embedder import Embedder
from memory3.cli.app import app

BRIDGE = "The bridge was built in 1874 by the engineer of the county. It crosses the river near the old town. "


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch, tmp_path):
    """An embedder that needs no model, and a working folder of the test's own."""
    monkeypatch.setattr(Embedder, "load", lambda name, **_: HashingEmbedder(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMORY3_BANK", raising=False)


@pytest.fixture(name="docs")
def docs_folder(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "bridge.md").write_text(BRIDGE * 4)
    (folder / "memory.txt").write_text("Memories are keys and values; the reader reads them.")
    return folder


def run(*arguments, code=0, **options):
    """Run a command in this process; the result must have this exit status and never be a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert result.exit_code == code, f"{result.exit_code}\n{result.output}\n{result.exception!r}"
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def run_json(*arguments, **options):
    """What a command prints on stdout with ``--json``: one document and nothing else."""
    return json.loads(run(*arguments, "--json", **options).stdout)


def error(*arguments, code=1, **options):
    """The message of a command that fails, on one line; stdout must be empty."""
    result = run(*arguments, code=code, **options)
    assert result.stdout == ""
    return re.sub(r"[\s│]+", " ", result.stderr)


@pytest.fixture(name="bank")
def written_bank(docs, tiny_model_path):
    run("write", docs, "--bank", "bank", "--model", tiny_model_path)
    return "bank"
