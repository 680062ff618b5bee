"""Files of strangers are read in a process of its own: ``python -m memory3.serving.reading``.

A file may be made to take for ever or to unzip to more than there is. Here it takes a bounded time and bounded RAM, and if
its reader dies the server says so and lives. A reader in pure Python does not hold up the threads that decode either.

One line of JSON asks for a file. Lines of JSON answer: its documents, then that it ended, or why it cannot be read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from memory3.errors import InputError, ReadError
from memory3.files import open_unzipped, parse_json
from memory3.types import Document

__all__ = ["DocumentReader", "Unreadable"]

#: RAM that the reading process may take beyond what it has when it starts.
_RAM_BYTES = 2 << 30
#: Records of one file, and bytes of one answer: JSON may write a character in six.
_RECORDS = 200_000
_LINE_OVERHEAD = 1 << 20
#: Seconds that a process may take to start.
_START_SECONDS = 120.0


class Unreadable(InputError):
    """A file could not be turned into documents."""


class DocumentReader:
    """Reads files in another process, one at a time. For one thread."""

    def __init__(self, *, seconds: float, text_bytes: int) -> None:
        """
        Args:
            seconds: that one file may take.
            text_bytes: of the text of one file, unzipped.
        """
        self._seconds = seconds
        self._bytes = text_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, file_id: str, filename: str, attributes: Mapping[str, Any]) -> list[Document]:
        """The documents of a file. Their ids are the file's, with ``#`` and a number where it holds several records.

        Args:
            path: of the file; its suffix tells the format.
            file_id: that its documents are called by.
            filename: that they come from.
            attributes: that are added to their metadata.

        Raises:
            Unreadable: it holds no text, is damaged, or asks for too much.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._seconds, stop)
        timer.start()
        try:
            ask = {"path": str(path), "id": file_id, "bytes": self._bytes, "seconds": self._seconds}
            process.stdin.write(json.dumps(ask).encode() + b"\n")
            process.stdin.flush()
            return [
                Document(told["id"], told["text"], filename, {**told["metadata"], **attributes})
                for told in self._answer(process.stdout)
            ]
        except Unreadable:
            raise
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
            self.close()
            if late.is_set():
                raise Unreadable(f"it takes more than {self._seconds:.0f} s to read: split it") from None
            raise Unreadable("its reader died, perhaps for want of RAM: it is damaged, or made to be too much") from error
        finally:
            timer.cancel()

    def start(self) -> None:
        """Start the process, so that the first file need not wait for it. OSError: it does not start."""
        self._started()

    def stop(self) -> None:
        """End what is being read. May be called from any thread."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdout is not None
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        ready = self._process.stdout.readline(16)
        timer.cancel()
        if not ready:
            self.close()
            raise OSError("the process that reads files does not start")
        return self._process

    def _answer(self, out: IO[bytes]) -> Iterator[dict[str, Any]]:
        left = 6 * self._bytes + _LINE_OVERHEAD
        while True:
            line = out.readline(left + 1)
            left -= len(line)
            if not line.endswith(b"\n") or left < 0:
                raise EOFError
            told = parse_json(line)
            if "error" in told:
                raise Unreadable(str(told["error"])[:1000])
            if "text" not in told:
                return
            yield told


# ---- in the process -----------------------------------------------------------------------------------------------------


def _documents(path: Path, file_id: str, most: int) -> Iterator[Document]:
    from memory3.text.readers import read_documents

    if path.suffix == ".gz":
        _check_unzipped(path, most)
    read, count = 0, 0
    for document in read_documents(path, id_field="", max_bytes=most, on_skip=lambda place, reason: None):
        read, count = read + len(document.text.encode()), count + 1
        if read > most:
            raise Unreadable(f"it has more than {most:,} bytes of text, which is the most: split it")
        if count > _RECORDS:
            raise Unreadable(f"it has more than {_RECORDS:,} records, which is the most: split it")
        row = document.id.removeprefix(path.as_posix())
        yield Document(file_id + row, document.text, "", document.metadata)


def _check_unzipped(path: Path, most: int) -> None:
    """A stream of empty lines gives no record and never ends: so all is unzipped once and counted."""
    size = 0
    with open_unzipped(path) as stream:
        while chunk := stream.read(1 << 20):
            size += len(chunk)
            if size > most:
                raise Unreadable(f"it has more than {most:,} bytes unzipped, which is the most: split it")


def _bound(seconds: float | None = None) -> None:
    """Bound the RAM of this process, and its CPU time from now on."""
    try:
        import resource
    except ImportError:  # Windows has none: there the parent's clock is the bound
        return
    if seconds is None:
        pages = int(Path("/proc/self/statm").read_text().split()[5]) if Path("/proc/self/statm").exists() else 0
        most = pages * resource.getpagesize() + _RAM_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def _serve() -> None:
    import memory3.text.readers  # noqa: F401 (before RAM is bounded: the bound is for files)

    with suppress(OSError, AttributeError):
        os.nice(10)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    _bound()

    def say(told: Mapping[str, Any]) -> None:
        out.write(json.dumps(told).encode() + b"\n")

    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        ask = parse_json(line)
        _bound(ask["seconds"])
        try:
            for document in _documents(Path(ask["path"]), ask["id"], ask["bytes"]):
                say({"id": document.id, "text": document.text, "metadata": dict(document.metadata)})
            say({})
        except ReadError as error:
            say({"error": error.reason})
        except InputError as error:
            say({"error": str(error).replace(ask["path"], "it")})
        except MemoryError:
            say({"error": "it asks for more RAM than a file may: it is damaged, or made to be too much"})
        except Exception as error:  # a reader's own fault, or its library's
            say({"error": f"it cannot be read ({type(error).__name__})"})
        out.flush()


if __name__ == "__main__":
    _serve()
