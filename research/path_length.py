"""How much of memory3 one answer goes through: its files, its functions and its lines, from ``Memory3.generate`` to the
attention kernel.

    python research/path_length.py src                       # this tree
    python research/path_length.py ../old/src src --out path.json

Each argument is the folder that ``memory3/`` of a tree lies in; its own ``tests/`` lie beside it and give a tiny random
model and an embedder. A process of the tree's own writes a small bank, answers once so that all is imported, and then
once more while every line is watched.

    files, file_lines          files of which a line ran, and how long these files are
    functions, function_lines  functions that ran, and how long these are
    lines                      lines that ran
    chain                      the longest stack, of functions of memory3, that ends in a kernel, outermost first;
    chain_files, chain_functions, chain_lines

Comments and docstrings count as lines: they are read, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

#: Where the kernels are, in the trees there have been, below ``memory3/``.
KERNELS = ("attention/kernels/", "attention/attend.py", "maths/attend.py")
#: What is called there in the end: a kernel, on the CPU, on CUDA, or the reference.
ENDS = {"_attention", "_flash_attention", "_efficient_attention", "_fused_cpu"}


class Watch:
    """Sees every line of ``root`` that runs between ``with`` and its end, in all threads."""

    def __init__(self, root: Path) -> None:
        self.root = f"{root}{os.sep}"
        self.lines: set[tuple[str, int]] = set()
        self.functions: set[CodeType] = set()
        self.chain: list[CodeType] = []

    def __enter__(self) -> Watch:
        threading.settrace(self._call)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _call(self, frame: FrameType, event: str, value: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(self.root):
            return None
        self.functions.add(code)
        if self._below(code).startswith(KERNELS) and code.co_name in ENDS:
            self.chain = max(self.chain, self._stack(frame), key=len)
        return self._line

    def _line(self, frame: FrameType, event: str, value: Any) -> Any:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def _below(self, code: CodeType) -> str:
        return code.co_filename.removeprefix(self.root).replace(os.sep, "/")

    def _stack(self, frame: FrameType | None) -> list[CodeType]:
        """Functions of the tree on the stack, outermost first."""
        found: list[CodeType] = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(self.root):
                found.insert(0, frame.f_code)
            frame = frame.f_back
        return found

    def told(self) -> dict[str, Any]:
        """The figures."""
        files = {name for name, _ in self.lines}
        return {
            "files": len(files),
            "file_lines": sum(length(name) for name in files),
            "functions": len(self.functions),
            "function_lines": len({(c.co_filename, line) for c in self.functions for line in extent(c)}),
            "lines": len(self.lines),
            "chain": [f"{self._below(code)}:{code.co_qualname}" for code in self.chain],
            "chain_functions": len(self.chain),
            "chain_files": len({code.co_filename for code in self.chain}),
            "chain_lines": sum(len(extent(code)) for code in set(self.chain)),
            "of_each_file": {
                name.removeprefix(self.root): sum(1 for other, _ in self.lines if other == name) for name in sorted(files)
            },
        }


def length(name: str) -> int:
    """Lines of a file."""
    return len(Path(name).read_text(encoding="utf-8").splitlines())


def extent(code: CodeType) -> range:
    """Lines of a function, those of functions inside it with it."""
    last = max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
    inner = [extent(constant).stop - 1 for constant in code.co_consts if isinstance(constant, CodeType)]
    return range(code.co_firstlineno, max([last, *inner]) + 1)


def watch(source: Path) -> dict[str, Any]:
    """One answer of the tree that is on the path."""
    from bank_writer import HashingEmbedder
    from tiny import save_tiny

    import memory3
    from memory3 import Bank, Document, Memory3

    root = Path(memory3.__file__).parent
    if root != source / "memory3":
        raise SystemExit(f"{source}: python imports memory3 from {root}: give the folder that memory3/ lies in")
    with tempfile.TemporaryDirectory(prefix="memory3-path-") as folder:
        m3 = Memory3.from_pretrained(save_tiny(Path(folder), chat=True), config="default")
        with Bank.open(Path(folder) / "bank", m3, embedder=HashingEmbedder()) as bank:
            bank.write([Document(f"d{n}", f"The bridge number {n} was built in {1800 + n}.") for n in range(12)])
            m3.generate("Which bridge was built in 1803?", bank, max_new_tokens=70)
            with Watch(root) as seen:
                answer = m3.generate("Which bridge was built in 1805?", bank, max_new_tokens=70, min_new_tokens=70)
        assert answer.citations, "nothing was recalled: the path is not that of an answer from memory"
    return seen.told()


def of(source: Path) -> dict[str, Any]:
    """The same in a process of the tree's own."""
    source = source.resolve()
    places = os.pathsep.join(map(str, (source, source.parent / "tests")))
    surroundings = {**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--watch", str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=surroundings)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sources", type=Path, nargs="+", help="folders that memory3/ lies in")
    parser.add_argument("--out", type=Path, help="JSON file to write, too")
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watch:
        print(json.dumps(watch(given.sources[0])))
        return
    found = {str(source): of(source) for source in given.sources}
    for source, figures in found.items():
        print(source)
        print("  " + ", ".join(f"{name} {value:,}" for name, value in figures.items() if isinstance(value, int)))
        print("".join(f"    {name}\n" for name in figures["chain"]), end="")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
