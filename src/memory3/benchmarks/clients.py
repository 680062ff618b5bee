"""Clients of chat servers, ours or others': streamed answers of one length, timed.

What is compared must be the same work: an answer of fewer or more tokens than were asked for is an error, and so is a
stream that tells no number of tokens.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from memory3.errors import InputError, ServingError

__all__ = ["Arm", "Asked", "ask", "compare", "model_of", "others", "turn"]


@dataclass(frozen=True)
class Arm:
    """Whom clients ask.

    Attributes:
        name: in results.
        host, port: of the server.
        model: that it is asked for.
        mode: of our own server; "": another's, which gets the passages in the prompt.
        body: fields of its requests beside those that all have.
    """

    name: str
    host: str
    port: int
    model: str
    mode: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        first: when text first came, in seconds from sending the request.
        total: when the answer had ended, likewise.
        tokens: of the answer.
        prompt: tokens of the prompt.
    """

    first: float
    total: float
    tokens: int
    prompt: int


# ---- which servers ---------------------------------------------------------------------------------------------------


def others(against: str, bodies: str, taken: Collection[str]) -> list[Arm]:
    """Arms of other servers.

    Args:
        against: ``NAME=http://HOST:PORT`` between commas, with ``#MODEL`` behind where a server lists none or several.
        bodies: a JSON object: fields of requests to all of them; or an object for each NAME.
        taken: names of other arms.

    Raises:
        InputError: something is written otherwise, or a name stands for two arms.
        ServingError: a server does not answer.
    """
    parts = [one.partition("=") for one in against.split(",") if one]
    names = [name for name, _, _ in parts]
    for name in names:
        if name in taken or names.count(name) > 1:
            raise InputError(f"{name!r} names two arms: give each server of against a name of its own")
    body = _bodies(bodies, names)
    arms = []
    for name, _, rest in parts:
        url, _, model = rest.partition("#")
        where = urlsplit(url)
        if where.scheme != "http" or not where.hostname or where.path.strip("/"):
            raise InputError(
                f"{name}={rest}: name another server as NAME=http://HOST:PORT, with #MODEL behind where it needs one"
            )
        port = where.port or 80
        arms.append(Arm(name, where.hostname, port, model or model_of(where.hostname, port), "", body[name]))
    return arms


def _bodies(text: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"against_body is {text!r}: write a JSON object")
    if found and all(key in names and isinstance(value, dict) for key, value in found.items()):
        return {name: found.get(name, {}) for name in names}
    return dict.fromkeys(names, found)


def model_of(host: str, port: int) -> str:
    """The model of a server that has a bank; where none has, its first.

    Args:
        host, port: of the server.

    Raises:
        ServingError: it does not answer, or names no model.
    """
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("GET", "/v1/models")
        response = connection.getresponse()
        said = response.read()
        listed = json.loads(said)["data"] if response.status == 200 else None
        ids = [str(one["id"]) for one in listed or ()]
    except (OSError, http.client.HTTPException) as error:
        raise ServingError(f"http://{host}:{port} does not answer: {error!r}") from None
    except (ValueError, KeyError, TypeError):
        ids = []
    finally:
        connection.close()
    if not ids:
        raise ServingError(f"http://{host}:{port}/v1/models names no model: write #MODEL behind its address")
    return next((one for one in ids if "@" in one), ids[0])


# ---- asking ----------------------------------------------------------------------------------------------------------


def ask(arm: Arm, question: str, tokens_out: int) -> Asked:
    """One streamed answer, greedy.

    Args:
        arm: is asked.
        question: the user's turn.
        tokens_out: of the answer.

    Raises:
        ServingError: there is no answer, or none of so many tokens.
    """
    body: dict[str, Any] = {
        "model": arm.model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": tokens_out,
        "temperature": 0,
    } | arm.body
    connection = http.client.HTTPConnection(arm.host, arm.port, timeout=600)
    try:
        asked = _asked(arm, connection, json.dumps(body))
    except (OSError, http.client.HTTPException) as error:
        raise ServingError(f"{arm.name} at {arm.host}:{arm.port} does not answer: {error!r}") from None
    finally:
        connection.close()
    if asked.tokens != tokens_out:
        raise ServingError(
            f"{arm.name} answered {asked.tokens} tokens where {tokens_out} were asked for: "
            "it has to go on after an end token, and to tell usage in streams (--against-body)"
        )
    return asked


def _asked(arm: Arm, connection: http.client.HTTPConnection, body: str) -> Asked:
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ServingError(f"{arm.name} answers {response.status}: {response.read(500).decode(errors='replace')}")
    first, usage = 0.0, dict[str, int]()
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:  # the status was sent before
            raise ServingError(f"{arm.name} failed within an answer: {line[6:506].decode(errors='replace').strip()}")
        if not first and any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
            first = time.perf_counter() - started
        usage = chunk.get("usage") or usage
    total = time.perf_counter() - started
    return Asked(first or total, total, usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0))


def turn(arm: Arm, questions: Sequence[str], many: int, tokens_out: int) -> tuple[float, list[Asked]]:
    """All questions. Returns the seconds that it took, and each request.

    Args:
        arm: is asked.
        questions: one a request.
        many: clients, each of which asks its next question when its last was answered.
        tokens_out: of every answer.
    """
    started = time.perf_counter()
    with ThreadPoolExecutor(many) as pool:
        asked = list(pool.map(lambda question: ask(arm, question, tokens_out), questions))
    return time.perf_counter() - started, asked


# ---- comparing -------------------------------------------------------------------------------------------------------


def compare(
    arms: Sequence[Arm],
    draw: Callable[[], str],
    turn_of: Callable[[Arm, str], str],
    many: int,
    requests: int,
    tokens_out: int,
    turns: Iterable[int],
) -> dict[str, Any]:
    """Arms in turn: the medians of each over the turns, and ratios to mode memory turn by turn.

    Modes of our own server each have their own questions, since it may keep what it looked up; other servers are asked
    those of the first arm.

    Args:
        arms: whom to ask.
        draw: a question that was never asked.
        turn_of: what an arm is asked for a question.
        many: clients.
        requests: of each client in each turn.
        tokens_out: of every answer.
        turns: their numbers.
    """
    rates: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    firsts: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number in turns:
        shared = [draw() for _ in range(many * requests)]
        order = list(arms) if number % 2 == 0 else list(reversed(arms))
        for arm in order:
            own = bool(arm.mode) and arm is not arms[0]
            mine = [turn_of(arm, question) for question in ([draw() for _ in shared] if own else shared)]
            seconds, asked = turn(arm, mine, many, tokens_out)
            firsts[arm.name] += [one.first for one in asked]
            rates[arm.name].append(
                {
                    "requests_per_second": len(asked) / seconds,
                    "tokens_per_second": sum(one.tokens for one in asked) / seconds,
                    "prompt_tokens": statistics.median(one.prompt for one in asked),
                }
            )
    found: dict[str, Any] = {}
    for arm in arms:
        found[arm.name] = {key: statistics.median(one[key] for one in rates[arm.name]) for key in rates[arm.name][0]} | {
            f"first_token_p{p}": _percentile(firsts[arm.name], p) for p in (50, 95, 99)
        }
    for name in found:
        if "memory" in found and name != "memory":
            found[name]["memory_requests_ratio"] = statistics.median(
                a["requests_per_second"] / b["requests_per_second"] for a, b in zip(rates["memory"], rates[name], strict=True)
            )
            found[name]["first_token_p95_ratio"] = found[name]["first_token_p95"] / found["memory"]["first_token_p95"]
    return found


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]
