"""A command that serves beside a benchmark, in a process of its own, and is ended with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from memory3.errors import ServingError

__all__ = ["beside"]

_ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")


@contextmanager
def beside(*arguments: object) -> Iterator[int]:
    """``python -m`` with these arguments, until the end of ``with``. Gives the port that it says it listens at.

    Raises:
        ServingError: it ends without saying one.
    """
    command = [sys.executable, "-m", *map(str, arguments)]
    # One thread: it must not take the cores that are measured. Elsewhere it would have its own.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as running:
        assert running.stdout is not None
        try:
            found = next((found for line in running.stdout if (found := _ADDRESS.search(line))), None)
            if found is None:
                raise ServingError(f"`{' '.join(command)}` ended before it listened: run it to see why")
            yield int(found[1])
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
