"""Hostile requests against every route of a server: none may fail it, hang, be answered in another shape, or leave anything.

    python tests/fuzz_serving.py 5000 [SEED]

It prints what was answered how often, and ends with 1 if anything is wrong.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import io
import json
import os
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import served
from hostile import Hostile, Known, requests, text

from memory3.serving.data_folder import StorageLimits
from memory3.serving.limits import Limits

__all__ = ["Fuzz", "right_answer", "run", "text"]

#: Seconds within which everything is answered.
PATIENCE = 5.0
#: Bytes by which the process may grow, of caches that fill once.
GROWTH = 200 << 20
QUESTION = [{"role": "user", "content": "Who built the bridge, and when?"}]


class Fuzz:
    """Sends requests, and looks at what comes back.

    Attributes:
        counts: of answers, by status.
        faults: what is wrong.
    """

    def __init__(self, running: served.Running) -> None:
        self.running = running
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest = 0.0
        self._place = (urlsplit(running.address).hostname or "", urlsplit(running.address).port or 0)
        self._connection = http.client.HTTPConnection(*self._place, timeout=PATIENCE)

    def close(self) -> None:
        self._connection.close()

    def send(self, one: Hostile) -> None:
        """Send one request; what is wrong with its answer is noted."""
        began = time.perf_counter()
        try:
            if one.raw:
                self._send_raw(one.raw)
            else:
                self._look(one, *self._send(one))
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._fault(one, f"{type(error).__name__}: {error}")
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def _send(self, one: Hostile) -> tuple[int, str, bytes]:
        self._connection.putrequest(one.method, one.path, skip_host="Host" in one.headers)
        for name, value in one.headers.items():
            self._connection.putheader(name, value.encode("latin-1"))
        if one.body is not None:
            self._connection.putheader("Content-Length", str(len(one.body)))
        self._connection.endheaders(one.body)
        answer = self._connection.getresponse()
        return answer.status, answer.headers.get_content_type(), answer.read()

    def _send_raw(self, pieces: tuple[bytes, ...]) -> None:
        began = time.perf_counter()
        with socket.create_connection(self._place, timeout=PATIENCE) as connection:
            received = b""
            # Whoever is refused before all was sent may find the connection reset, or closed.
            with contextlib.suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.01)
                connection.shutdown(socket.SHUT_WR)
                while more := connection.recv(1 << 16):
                    received += more
        if time.perf_counter() - began > PATIENCE:
            self._fault(Hostile(raw=pieces), f"no end after {PATIENCE:g} s, {received[:300]!r}")
        self.counts["raw cut"] += not received
        while received:  # one answer behind another, where there were several requests
            head, _, received = received.partition(b"\r\n\r\n")
            size = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            body, received = (received[: int(size[1])], received[int(size[1]) :]) if size else (received, b"")
            status = head[9:12].decode("latin-1")
            self.counts[f"raw {status}"] += 1
            if status[:1] == "5" or not head.startswith(b"HTTP/1.1 "):
                self._fault(Hostile(raw=pieces), f"{status}: {body[:300]!r}")
            elif status[:1] == "4" and not _is_error(body):
                self._fault(Hostile(raw=pieces), f"{status} in another shape: {body[:300]!r}")

    def _look(self, one: Hostile, status: int, kind: str, body: bytes) -> None:
        self.counts[str(status)] += 1
        if status >= 500:
            self._fault(one, f"{status}: {body[:300]!r}")
        elif status >= 400 and one.method != "HEAD":
            if not _is_error(body):
                self._fault(one, f"{status} in another shape: {body[:300]!r}")
            elif status == 400 and one.hurt and not _names(json.loads(body)["error"], one.hurt):
                self._fault(one, f"the error does not name {one.hurt!r}: {body[:300]!r}")
        elif kind == "application/json" and body:
            try:
                made = json.loads(body, parse_constant=_no_number)
            except ValueError as error:
                self._fault(one, f"an answer that is no JSON: {error}")
                return
            self._undo(one, made)
        elif kind == "text/event-stream" and b'"server_error"' in body:
            self._fault(one, f"a stream that fails: {body[-300:]!r}")

    def _undo(self, one: Hostile, made: Any) -> None:
        """Delete what came to be, so that bounds of storage are not what is tested."""
        places = {("/v1/files", "file"): "/v1/files", ("/v1/vector_stores", "vector_store"): "/v1/vector_stores"}
        if one.method == "POST" and isinstance(made, dict):
            place = places.get((one.path.partition("?")[0], str(made.get("object"))))
            if place:
                self.send(Hostile("DELETE", f"{place}/{made['id']}"))

    def _fault(self, one: Hostile, what: str) -> None:
        sent = one.raw or f"{one.method} {one.path} {dict(one.headers)} {one.body!r:.600}"
        self.faults.append(f"{what:.500}\n    {sent!r:.1000}")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_error(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
        return (
            set(error) == {"message", "type", "param", "code"} and isinstance(error["message"], str) and error["message"] != ""
        )
    except (ValueError, KeyError, TypeError):
        return False


def _names(error: dict[str, Any], hurt: str) -> bool:
    """Whether an error is of a field, or of the body as a whole, which then could not be read."""
    if error["code"] in ("invalid_json", "missing_body") or "question is empty" in error["message"]:
        return True
    return isinstance(error["param"], str) and (error["param"] != "" or hurt == "")


def right_answer(running: served.Running) -> str:
    """What an honest client is told; the same at all times."""
    with running.client() as client:
        answer = client.chat.completions.create(model="tiny@docs", messages=QUESTION, max_tokens=6)  # type: ignore[arg-type]
        return str(answer.choices[0].message.content)


def _known(running: served.Running) -> Known:
    """Put a file into a store, so that there is one."""
    with running.client() as client, running.http() as plain:
        store = client.vector_stores.create(name="x")
        file = client.files.create(file=("x.txt", b"The bridge was built in 1874."), purpose="assistants")
        batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=[file.id], poll_interval_ms=50)
        version = plain.get("/banks/docs").json()["version"]
        return Known(store.id, file.id, batch.id, version, "river#0")


def _held() -> tuple[int, int]:
    """Handles that are open, and bytes of RAM."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE")


def run(folder: Path, count: int, seed: int = 0) -> tuple[Fuzz, dict[str, Any]]:
    """Send so many requests to a server in ``folder``. Returns what happened, with figures."""
    limits = Limits(most_answer_tokens=8, answer_tokens=4, body_seconds=2.0, header_seconds=2.0)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), served.server(folder, files=StorageLimits(), limits=limits) as running:
        right, known = right_answer(running), _known(running)
        with running.http() as plain:
            openapi = plain.get("/openapi.json").json()
        fuzz = Fuzz(running)
        chance = random.Random(seed)
        before = _held()
        for number, one in zip(range(count), requests(chance, known, openapi), strict=False):
            if number == count // 4:
                before = _held()  # what is filled once is filled by now
            fuzz.send(one)
        fuzz.close()
        running.wait_until_idle()
        if right_answer(running) != right:
            fuzz.faults.append("the server answers otherwise than before")
        until = time.monotonic() + 5
        while (after := _held())[0] > before[0] + 4 and time.monotonic() < until:
            time.sleep(0.1)
        if after[0] > before[0] + 4:
            fuzz.faults.append(f"{after[0] - before[0]} handles are left open")
        if after[1] > before[1] + GROWTH:
            fuzz.faults.append(f"the process grew by {after[1] - before[1]:,} bytes")
        left = [str(path) for path in (folder / "files").rglob(".upload-*")]
        if left:
            fuzz.faults.append(f"half-written uploads are left: {left[:3]}")
    if said.getvalue():
        fuzz.faults.append(f"on stderr: ...{said.getvalue()[-3000:]}")
    fuzz.faults += [f"slower than {PATIENCE:g} s: {fuzz.slowest:.1f} s"] if fuzz.slowest > PATIENCE else []
    figures = {**dict(sorted(fuzz.counts.items())), "slowest": round(fuzz.slowest, 2), "handles": after[0] - before[0]}
    return fuzz, {**figures, "grown by": after[1] - before[1], "faults": len(fuzz.faults)}


if __name__ == "__main__":
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        done, told = run(Path(place), int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for fault in done.faults[:40]:
        print(fault, file=sys.stderr)
    print(json.dumps({**told, "seconds": round(time.monotonic() - started)}, indent=1))
    sys.exit(1 if done.faults else 0)
