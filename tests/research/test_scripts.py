"""The scripts that compare two source trees: what they make of figures, and that they see a path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from research import compare_speed, path_length

ROOT = Path(__file__).parents[2]


def measured(memory: list[float], plain: list[float], seconds: list[float]) -> dict[str, object]:
    return {
        "batch 1": {"tokens_per_second": {"turns": {"memory": memory, "plain": plain}}, "prompt": 7},
        "128 in": {"seconds": {"turns": {"text": [4.0, 4.0], "memory": seconds}}},
        "references": 20,
    }


def test_figures_of_two_trees_are_compared_turn_by_turn() -> None:
    before, after = measured([10, 20], [20, 40], [1.0, 2.0]), measured([9, 19], [20, 20], [0.5, 4.0])
    lines = {line["figure"]: line for line in compare_speed.compared(before, after, ("decode",))}
    memory = lines["decode / batch 1 / tokens_per_second / memory"]
    assert memory["spread"] == [pytest.approx(0.9), pytest.approx(0.95)]
    assert memory["worse"]
    control = lines["decode / batch 1 / tokens_per_second / plain"]
    assert control["control"]
    assert not control["worse"]
    assert lines["decode / batch 1 / tokens_per_second / memory over plain"]["spread"] == [
        pytest.approx(0.9),
        pytest.approx(1.9),
    ]
    assert lines["decode / 128 in / seconds / memory"]["spread"] == [0.5, 2.0]  # half the seconds is twice as good
    assert lines["decode / 128 in / seconds / text over memory"]["spread"] == [0.5, 2.0]
    assert "WORSE" in compare_speed.table(list(lines.values()))


def test_arms_wait_before_each_turn_and_take_turns() -> None:
    said: list[str] = []

    def arm(name: str) -> float:
        said.append(name)
        return float(len(said))

    arms = {"memory": lambda: arm("memory"), "plain": lambda: arm("plain")}
    figures = compare_speed.taking_turns(arms, 2, lambda: said.append("wait"))
    assert said == ["memory", "plain", "wait", "memory", "plain", "wait", "plain", "memory"]
    assert figures == {"memory": [4.0, 8.0], "plain": [5.0, 7.0]}


@pytest.mark.long
def test_the_path_ends_in_a_kernel(tmp_path: Path) -> None:
    command = [sys.executable, path_length.__file__, str(ROOT / "src"), "--out", str(tmp_path / "path.json")]
    subprocess.run(command, check=True, timeout=300)
    (found,) = json.loads((tmp_path / "path.json").read_text()).values()
    assert found["chain"][0] == "llm.py:Memory3.generate"
    assert found["chain"][-1].startswith("attention/kernels/")
    assert found["lines"] == sum(found["of_each_file"].values()) < found["function_lines"] < found["file_lines"]
