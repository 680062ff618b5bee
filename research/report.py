"""``memory3 report``: several results as one document, with the paper's own figures beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory3.evaluation.report import markdown
from memory3.files import write_atomically
from research.paper import paper_figures

__all__ = ["write_summary"]

_INTRODUCTION = """# Results

Written by `memory3 report`; do not edit.
How each suite is run, and what its modes and controls are: `docs/evaluation.md` of memory3.
The model `smollm2-135m-instruct` is a Q4_1 copy, de-quantised.
"""


def write_summary(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """One Markdown file of several results.

    Args:
        path: file to write. Folders above it are made.
        found: results, each as `memory3.evaluation.report.read_results` gives them.

    Raises:
        InputError: one of them lacks what results of `memory3 eval` have.
    """
    lines = [_INTRODUCTION.rstrip(), ""]
    for results in found:
        lines += [markdown(results, 2, paper_figures(results["suite"])), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines).rstrip() + "\n")
