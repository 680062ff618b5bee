"""A server under load: requests per second, tokens per second and the time to the first token, at several numbers of
clients, in mode memory against the same server in mode text with the same references.

    memory3 bench serve --bank ./bank --against llama.cpp=http://127.0.0.1:8081

The server is a process of its own; clients are threads here, each of which asks its next question when the last was
answered. No question is asked twice. Arms take turns, so that a machine that slows down slows all of them. Mode text,
and other servers named by ``--against``, have the ``k`` references of a question in the prompt. Mode memory reads ``k`` for
every 64 tokens of question and answer: for a question of one such chunk, first the same ones. ``--against-body`` is added to
what another server is asked: how it is told to go on after an end token differs.

With ``--soak 10000`` so many questions follow, and the first thousand are compared with the last: speed and resident memory.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memory3.bank import Bank
from memory3.benchmarks.measure import bank_references, progress, python_documents
from memory3.errors import InputError, ServingError
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_ADAPTED

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "model": DEFAULT_ADAPTED,
    "bank": "",
    "references": 200,
    "clients": "1,4,8,16",
    "tokens_in": "32,128",
    "tokens_out": 64,
    "modes": "memory,text,none",
    "requests": 3,
    "repeats": 3,
    "k": 5,
    "against": "",
    "against_body": '{"ignore_eos": true, "stream_options": {"include_usage": true}}',
    "soak": 0,
    "engine": "transformers",
}

#: Seconds a server may take to load its model.
_START = 120


@dataclass(frozen=True)
class _Arm:
    """Whom clients ask. ``mode``: of our own server; "": another's, which gets the passages in the prompt."""

    name: str
    host: str
    port: int
    model: str
    mode: str
    body: dict[str, Any]


@dataclass(frozen=True)
class _Asked:
    """One request: when the first token came and the last, in seconds from sending it, and how many tokens there were of
    the answer and the prompt (0: the server does not tell)."""

    first: float
    total: float
    tokens: int
    prompt: int


def run(
    model: str,
    bank: str,
    references: int,
    clients: str,
    tokens_in: str,
    tokens_out: int,
    modes: str,
    requests: int,
    repeats: int,
    k: int,
    against: str,
    against_body: str,
    soak: int,
    engine: str,
) -> dict[str, Any]:
    """For each length of prompt, number of clients and arm: medians over the turns, and ratios to mode text.

    Args:
        model: name or path.
        bank: folder of one; "": one of Python's own documentation is written.
        references: in the bank that is written.
        clients: numbers of them between commas.
        tokens_in: lengths of a question between commas.
        tokens_out: of every answer.
        modes: between commas.
        requests: of each client in each turn.
        repeats: turns.
        k: references that are read for a question.
        against: other servers, as NAME=URL, between commas.
        against_body: JSON object: fields of a request to these.
        soak: questions of the long run; 0: none.
        engine: of our server.
    """
    with ExitStack() as stack:
        if not bank:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="memory3-bench-"))
            bank = str(Path(folder) / "bank")
            _write(model, bank, references)
        questions = _Questions(model, bank, k)
        port, process = stack.enter_context(_server(model, bank, engine))
        name = _models("127.0.0.1", port)
        ours = {"ignore_eos": True, "stream_options": {"include_usage": True}}
        arms = [
            _Arm(
                mode, "127.0.0.1", port, name, mode, ours | {"memory3": {"mode": mode} | ({} if mode == "none" else {"k": k})}
            )
            for mode in modes.split(",")
        ]
        arms += [_other(one, _object(against_body)) for one in against.split(",") if one]
        results: dict[str, Any] = {"model": name}
        for length in (int(n) for n in tokens_in.split(",")):
            for many in (int(n) for n in clients.split(",")):
                results[f"{length} in, {many} clients"] = _compare(
                    arms, questions, length, many, tokens_out, requests, repeats
                )
        if soak:
            results["soak"] = _soak(arms[0], questions, soak, process)
        return results


# ---- questions -------------------------------------------------------------------------------------------------------


class _Questions:
    """Questions that were never asked before: stretches of the bank's own text, each begun somewhere else."""

    def __init__(self, model: str, folder: str, k: int) -> None:
        m3 = Memory3.from_pretrained(model)
        self._tokenizer = m3.tokenizer
        self._frame = len(m3.frame.after([0])) - 1
        self._k = k
        self._bank = Bank.open(folder, m3)
        self._tokens = [token for r in bank_references(self._bank) for token in r.token_ids]
        self._draw = random.Random(0)
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    def next(self, length: int) -> str:
        """A question of about so many tokens, the model's own turns counted."""
        words = max(3, length - self._frame)
        with self._lock:
            while True:
                start = self._draw.randrange(max(1, len(self._tokens) - words))
                text = self._tokenizer.decode(self._tokens[start : start + words]).strip()
                if text and text not in self._asked:
                    self._asked.add(text)
                    return str(text)

    def with_passages(self, question: str) -> str:
        """A user's turn that holds what the bank finds for the question, as a server without a bank is asked."""
        (hits,) = self._bank.search([question], self._k)
        texts = [reference.text for reference in self._bank.references([hit.reference_id for hit in hits])]
        return "\n\n".join(["Use these passages:", *texts, question])


def _write(model: str, folder: str, references: int) -> None:
    m3 = Memory3.from_pretrained(model)
    with Bank.open(folder, m3) as bank:
        bank.write(python_documents(m3, references))


# ---- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def _server(model: str, bank: str, engine: str) -> Iterator[tuple[int, int]]:
    """Our server in a process of its own: its port and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "memory3", "serve", "--bank", bank, "--model", model, "--port", str(port)]
    command += ["--engine", engine]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until = time.monotonic() + _START
            while not _is_ready(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-2000:]
                    raise ServingError(f"`memory3 serve` did not come up: {said}")
                time.sleep(0.2)
            yield port, process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


def _models(host: str, port: int) -> str:
    """The model of a server that has a bank; where none has, its first."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", "/v1/models")
    ids = [str(one["id"]) for one in json.loads(connection.getresponse().read())["data"]]
    return next((one for one in ids if "@" in one), ids[0])


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"against_body is {text!r}: write a JSON object")
    return found


def _other(text: str, body: dict[str, Any]) -> _Arm:
    name, has_url, rest = text.partition("=")
    url, _, model = rest.partition("#")
    where = urlsplit(url)
    if not has_url or where.scheme != "http" or not where.hostname:
        raise InputError(f"{text!r}: name another server as NAME=http://HOST:PORT, with #MODEL behind it where it wants one")
    port = where.port or 80
    return _Arm(name, where.hostname, port, model or _models(where.hostname, port), "", body)


# ---- asking ----------------------------------------------------------------------------------------------------------


def _ask(arm: _Arm, question: str, tokens_out: int) -> _Asked:
    """One streamed answer."""
    body: dict[str, Any] = {
        "model": arm.model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": tokens_out,
        "temperature": 0,
    } | arm.body
    connection = http.client.HTTPConnection(arm.host, arm.port, timeout=600)
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ServingError(f"{arm.name} answers {response.status}: {response.read(500).decode(errors='replace')}")
    first, pieces, usage = 0.0, 0, dict[str, int]()
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
            pieces += 1
            first = first or time.perf_counter() - started
        usage = chunk.get("usage") or usage
    total = time.perf_counter() - started
    connection.close()
    return _Asked(first or total, total, usage.get("completion_tokens", pieces), usage.get("prompt_tokens", 0))


def _turn(arm: _Arm, questions: Sequence[str], many: int, tokens_out: int) -> tuple[float, list[_Asked]]:
    """All questions, by so many clients. Returns the seconds that it took."""
    started = time.perf_counter()
    with ThreadPoolExecutor(many) as pool:
        asked = list(pool.map(lambda question: _ask(arm, question, tokens_out), questions))
    return time.perf_counter() - started, asked


def _compare(
    arms: Sequence[_Arm], questions: _Questions, length: int, many: int, tokens_out: int, requests: int, repeats: int
) -> dict[str, Any]:
    turns: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    firsts: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number in progress(range(repeats), f"{many} clients, {length} tokens in"):
        order = list(arms) if number % 2 == 0 else list(reversed(arms))
        for arm in order:
            mine = [questions.next(length) for _ in range(many * requests)]
            if not arm.mode:
                mine = [questions.with_passages(question) for question in mine]
            seconds, asked = _turn(arm, mine, many, tokens_out)
            firsts[arm.name] += [one.first for one in asked]
            tokens = sum(one.tokens for one in asked)
            turns[arm.name].append(
                {
                    "requests_per_second": len(asked) / seconds,
                    "tokens_per_second": tokens / seconds,
                    "prompt_tokens": statistics.median(one.prompt for one in asked),
                }
            )
    found: dict[str, Any] = {}
    for arm in arms:
        found[arm.name] = {key: statistics.median(turn[key] for turn in turns[arm.name]) for key in turns[arm.name][0]} | {
            f"first_token_p{p}": _percentile(firsts[arm.name], p) for p in (50, 95, 99)
        }
    for name in found:
        if "memory" in found and name != "memory":
            found[name]["memory_requests_ratio"] = statistics.median(
                a["requests_per_second"] / b["requests_per_second"] for a, b in zip(turns["memory"], turns[name], strict=True)
            )
            found[name]["first_token_p95_ratio"] = found[name]["first_token_p95"] / found["memory"]["first_token_p95"]
    return found


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


# ---- the long run ----------------------------------------------------------------------------------------------------


def _soak(arm: _Arm, questions: _Questions, count: int, process: int) -> dict[str, Any]:
    """Short answers to many questions by eight clients: the first tenth against the last."""
    part = max(1, count // 10)
    seconds: list[float] = []
    resident: list[int] = []
    for _ in progress(range(10), f"{10 * part} questions"):
        took, _asked = _turn(arm, [questions.next(32) for _ in range(part)], 8, 4)
        seconds.append(took)
        resident.append(_resident(process))
    return {
        "questions": 10 * part,
        "seconds_per_tenth": seconds,
        "resident_bytes_after_tenth": resident,
        "speed_last_to_first": seconds[0] / seconds[-1],
        "resident_last_to_first": resident[-1] / resident[0],
    }


def _resident(process: int) -> int:
    """Bytes of RAM that a process holds (Linux)."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * 4096
