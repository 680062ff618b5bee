"""Is one source tree slower than another? ``memory3 bench decode, first_token, write`` of both, taking turns in one run.

    python research/compare_speed.py --before ../old/src --after src --out speed.json
    python research/compare_speed.py --before ../old/src --after src --quick

Each tree has a process of its own, which loads a model once. Whenever a benchmark would measure again, its process stops
and waits, so that only one of the two works at a time: before, after, after, before, and so on. A figure of one tree is
compared with that of the other in the same turn.

For each figure: medians of both trees, and after over before as the median over turns, with its middle half and its whole
spread. All ratios are turned so that above 1 is better. A figure is *worse* where the whole spread is below 1: with six
turns, chance does that to one figure in 64. Arms without memory (``plain``, ``text``) are controls: what they differ by
is noise, or a change of the machine. Exit status 1 where a figure is worse.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

#: By benchmark: its options, turns apart. About eight minutes on two quiet cores.
OPTIONS: dict[str, dict[str, Any]] = {
    "decode": {"batches": "1,8", "tokens_in": 64, "tokens_out": 96},
    "first_token": {"batches": "1,8", "tokens_in": "128", "references": 100},
    "write": {"batch": 16, "batches": 1},
}
#: For a first look: one question at a time.
QUICK: dict[str, dict[str, Any]] = {
    "decode": {"batches": "1", "tokens_in": 64, "tokens_out": 64},
    "first_token": {"batches": "1", "tokens_in": "64", "references": 30},
    "write": {"batch": 8, "batches": 1},
}
TURNS, QUICK_TURNS = 6, 2


# ---- in the process of a tree ----------------------------------------------------------------------------------------


def serve(plan: Mapping[str, Mapping[str, Any]], turns: int) -> None:
    """Run the benchmarks of the tree that is on the path; stop before every turn, and wait for a line on stdin."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer

    def say(**told: Any) -> None:
        print(json.dumps(told), file=answers, flush=True)

    def wait(**told: Any) -> None:
        say(**told)
        if not sys.stdin.readline():
            sys.exit(1)  # the other end is gone

    import memory3
    from memory3.benchmarks import decode, first_token, write

    modules: dict[str, Any] = {"decode": decode, "first_token": first_token, "write": write}
    patch(modules.values(), wait)
    wait(ready=memory3.__file__)
    for name, options in plan.items():
        module = modules[name]
        found = module.run(**{**module.OPTIONS, **options, "repeats": turns})
        wait(benchmark=name, found=found)
    say(done=True)


def patch(modules: Any, wait: Callable[[], None]) -> None:
    """Let the benchmarks stop before each turn, keep every figure, and load a model once."""
    for module in modules:
        module.alternate = lambda arms, repeats: taking_turns(arms, repeats, wait)
        module.ratio = all_turns
        memory3 = module.Memory3  # the same class in all of them
    memory3.from_pretrained = cache(memory3.from_pretrained)


def taking_turns(arms: Mapping[str, Callable[[], float]], repeats: int, wait: Callable[[], None]) -> dict[str, list[float]]:
    """As `memory3.benchmarks.measure.alternate`: every arm once to warm up, then in turn; but each turn waits for a word."""
    for arm in arms.values():
        arm()
    figures: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats):
        wait()
        for name in arms if turn % 2 == 0 else reversed(list(arms)):
            figures[name].append(arms[name]())
    return figures


def all_turns(figures: Mapping[str, Sequence[float]], above: str, below: str) -> dict[str, Any]:
    """As `memory3.benchmarks.measure.ratio`, of which only the turns are needed here."""
    return {"turns": {above: list(figures[above]), below: list(figures[below])}}


# ---- in the process that compares ------------------------------------------------------------------------------------


class Tree:
    """A source tree and its process, which works only inside `go`."""

    def __init__(self, source: Path, plan: Mapping[str, Any], turns: int) -> None:
        command = [sys.executable, __file__, "--serve", json.dumps({"plan": plan, "turns": turns})]
        # Idle threads of torch spin by default, beside the other tree's work.
        surroundings = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": str(source)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings, cwd=source
        )
        self.source, self.done, self.busy = source, False, 0.0
        self.found: dict[str, Any] = {}
        loaded = Path(self.hear()["ready"])
        if not loaded.is_relative_to(source):
            raise SystemExit(f"{source}: python imports memory3 from {loaded}: give the folder that memory3/ lies in")

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        output: IO[str] = self.process.stdout  # type: ignore[assignment]
        line = output.readline()
        if not line:
            raise SystemExit(f"{self.source}: its process ended with status {self.process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def go(self) -> None:
        """Let it work until it stops by itself."""
        started = time.monotonic()
        stdin: IO[str] = self.process.stdin  # type: ignore[assignment]
        stdin.write("go\n")
        stdin.flush()
        said = self.hear()
        self.busy += time.monotonic() - started
        self.done = "done" in said
        if "benchmark" in said:
            self.found[said["benchmark"]] = said["found"]


@contextmanager
def two_trees(sources: Sequence[Path], plan: Mapping[str, Any], turns: int) -> Iterator[list[Tree]]:
    """Both processes; ended whatever happens."""
    trees: list[Tree] = []
    try:
        for source in sources:
            trees.append(Tree(source, plan, turns))
        yield trees
    finally:
        for tree in trees:
            tree.process.terminate()
            tree.process.wait()


def measure(before: Path, after: Path, plan: Mapping[str, Any], turns: int) -> dict[str, Any]:
    """Both trees through the plan, A B B A.

    Args:
        before: folder that ``memory3/`` of the first tree lies in.
        after: of the second.
        plan: options by benchmark, such as `OPTIONS`.
        turns: how often each figure is taken of each tree.
    """
    started = time.monotonic()
    with two_trees([before, after], plan, turns) as trees:
        first, second = trees
        while not (first.done and second.done):
            for tree in (first, second):
                if not tree.done:
                    tree.go()
            first, second = second, first
        a, b = trees
        figures = [line for name in plan for line in compared(a.found[name], b.found[name], (name,))]
        return {
            "before": str(before),
            "after": str(after),
            "turns": turns,
            "options": dict(plan),
            "seconds": time.monotonic() - started,
            "seconds_of_each": [a.busy, b.busy],
            "load": list(os.getloadavg()),
            "figures": figures,
            "worse": [line["figure"] for line in figures if line["worse"]],
        }


def compared(before: Any, after: Any, path: tuple[str, ...]) -> list[dict[str, Any]]:
    """A line per figure that both trees have, wherever in the results of a benchmark it is."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    if "turns" not in before or "turns" not in after:
        return [line for key in before if key in after for line in compared(before[key], after[key], (*path, key))]
    (above, below), lower_is_better = before["turns"], "seconds" in path[-1]
    lines = []
    for arm in (above, below):
        pairs = list(zip(before["turns"][arm], after["turns"][arm], strict=True))
        lines.append(line_of(" / ".join((*path, arm)), pairs, lower_is_better, control=arm in ("plain", "text")))
    ratios = [[x / y for x, y in zip(side["turns"][above], side["turns"][below], strict=True)] for side in (before, after)]
    pairs = list(zip(*ratios, strict=True))
    return [*lines, line_of(" / ".join((*path, f"{above} over {below}")), pairs, lower_is_better=False)]


def line_of(figure: str, pairs: Sequence[tuple[float, float]], lower_is_better: bool, control: bool = False) -> dict[str, Any]:
    """One figure: medians, and after over before turn by turn, turned so that above 1 is better."""
    ratios = sorted(b / a if not lower_is_better else a / b for a, b in pairs)
    quarters = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "figure": figure,
        "control": control,
        "before": statistics.median(a for a, _ in pairs),
        "after": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "middle_half": [quarters[0], quarters[2]],
        "spread": [ratios[0], ratios[-1]],
        "worse": not control and ratios[-1] < 1,
    }


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """The lines as text."""
    rows = [("figure", "before", "after", "ratio", "middle half", "spread", "")]
    for line in figures:
        low, high = line["middle_half"]
        least, most = line["spread"]
        note = "control" if line["control"] else "WORSE" if line["worse"] else ""
        numbers = (f"{line['before']:.4g}", f"{line['after']:.4g}", f"{line['ratio']:.3f}")
        rows.append((line["figure"], *numbers, f"{low:.3f}-{high:.3f}", f"{least:.3f}-{most:.3f}", note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--before", type=Path, help="folder that memory3/ of the one tree lies in")
    parser.add_argument("--after", type=Path, help="of the other; by default this checkout's src")
    parser.add_argument("--turns", type=int, help=f"figures of each tree; {TURNS}, or {QUICK_TURNS} with --quick")
    parser.add_argument("--bench", action="append", choices=sorted(OPTIONS), help="this one alone; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small sizes and few turns: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file to write, too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(**json.loads(given.serve))
        return 0
    if given.before is None:
        parser.error("give --before DIR, such as ../old/src")
    sizes = QUICK if given.quick else OPTIONS
    plan = {name: sizes[name] for name in given.bench or sizes}
    after = given.after or Path(__file__).parents[1] / "src"
    turns = given.turns or (QUICK_TURNS if given.quick else TURNS)
    found = measure(given.before.resolve(), after.resolve(), plan, turns)
    print(table(found["figures"]))
    print(
        f"{turns} turns in {found['seconds']:.0f} s; load {found['load'][0]:.1f}; worse: {', '.join(found['worse']) or 'none'}"
    )
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["worse"] else 0


if __name__ == "__main__":
    sys.exit(main())
