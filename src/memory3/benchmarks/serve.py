"""A server under load: requests per second, tokens per second and the time to the first token, at several numbers of
clients, in mode memory against the same server in mode text with the same references.

    memory3 bench serve --bank ./bank --against llama.cpp=http://127.0.0.1:8081

The server is a process of its own; clients are threads here, each of which asks its next question when the last was
answered. No server is asked a question twice; other servers are asked those of the first mode. Arms take turns, so that a
machine that slows down slows all of them, and every answer has as many tokens as were asked for, or it is an error. Mode
text, and other servers named by ``--against``, have the ``k`` references of a question in the prompt. Mode memory reads
``k`` for every 64 tokens of question and answer: for a question of one such chunk, first the same ones.

``--against-body`` is added to what other servers are asked, since they are told in different words to go on after an end
token. It is one object for all, or one for each by name: ``{"llama.cpp": {"ignore_eos": true}, "other": {}}``.

With ``--soak 10000`` so many questions follow, and the first thousand are compared with the last: speed and resident memory.
"""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from memory3.bank import Bank
from memory3.benchmarks.clients import Arm, ask, compare, model_of, others, turn
from memory3.benchmarks.measure import bank_references, progress, python_documents
from memory3.errors import ServingError
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
    """For each length of prompt, number of clients and arm: medians over the turns, and ratios to mode memory.

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
        against: other servers, as NAME=URL, between commas; with #MODEL behind where a server lists none, or several.
        against_body: JSON object: fields of a request to these, or such an object for each NAME.
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
        name = model_of("127.0.0.1", port)
        ours = {"ignore_eos": True, "stream_options": {"include_usage": True}}
        arms = [
            Arm(mode, "127.0.0.1", port, name, mode, ours | {"memory3": {"mode": mode} | ({} if mode == "none" else {"k": k})})
            for mode in modes.split(",")
        ]
        arms += others(against, against_body, modes.split(","))
        for arm in arms:  # what does not work is seen before minutes of measuring; and what is first used then is there
            ask(arm, questions.for_arm(arm, questions.next(32)), tokens_out)
        results: dict[str, Any] = {"model": name}
        for length in (int(n) for n in tokens_in.split(",")):
            for many in (int(n) for n in clients.split(",")):
                turns = progress(range(repeats), f"{many} clients, {length} tokens in")
                results[f"{length} in, {many} clients"] = compare(
                    arms, partial(questions.next, length), questions.for_arm, many, requests, tokens_out, turns
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

    def for_arm(self, arm: Arm, question: str) -> str:
        """A user's turn; for a server without a bank, with what the bank finds for the question."""
        if arm.mode:
            return question
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


# ---- the long run ----------------------------------------------------------------------------------------------------


def _soak(arm: Arm, questions: _Questions, count: int, process: int) -> dict[str, Any]:
    """Short answers to many questions by eight clients: the first tenth against the last."""
    part = max(1, count // 10)
    seconds: list[float] = []
    resident: list[int] = []
    for _ in progress(range(10), f"{10 * part} questions"):
        took, _asked = turn(arm, [questions.next(32) for _ in range(part)], 8, 4)
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
