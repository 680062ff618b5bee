"""The scripts that measure other servers: their servers run while they are measured and no longer."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import served

from research.serving import batching, peers

SERVER = """
import http.server, sys

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

print("here I am", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""


def peer(code: str) -> peers.Peer:
    return peers.Peer([sys.executable, "-c", code, "--port"], {}, "", {"weights": "none"})


def test_a_server_runs_until_it_was_measured(tmp_path: Path) -> None:
    with peers.running("one", peer(SERVER), tmp_path) as (port, told):
        assert peers.is_ready(port)
        assert told["weights"] == "none"
        assert told["start_seconds"] > 0
        assert peers.cpu_seconds(told["process"]) >= 0
    assert not peers.is_ready(port)
    assert (tmp_path / "one.log").read_text().startswith("here I am")


def test_a_server_that_does_not_come_up_is_said_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with (
        pytest.raises(SystemExit, match=r"one did not come up: see .*one\.log"),
        peers.running("one", peer("raise OSError('no room')"), tmp_path),
    ):
        pass
    assert time.monotonic() - started < peers.START / 2
    assert "no room" in (tmp_path / "one.log").read_text()


def test_answers_are_equal_up_to_the_first_difference() -> None:
    assert batching.same([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) == 1
    assert batching.same([[1, 2, 3], [9, 5, 6]], [[1, 2, 3], [4, 5, 6]]) == 0.5
    assert batching.same([[1, 2, 3, 7]], [[1, 2, 9, 7]]) == 0.5


@pytest.mark.long
def test_both_schedulers_answer_what_a_batch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model of some thousand weights, in two turns."""
    monkeypatch.setattr(batching, "THREADS", 1)
    monkeypatch.setattr(batching, "PAGES", 8)
    m3, other = served.tiny_memory3(head_dim=16), served.tiny_memory3(head_dim=16)
    arms = {
        "engine": batching.Engine(m3),
        "manager": batching.Manager(other.model, "sdpa", 16),
        "manager-eager": batching.Manager(other.model, "paged|eager", 16),
        "generate": batching.Generate(other.model),
    }
    draw, asked = random.Random(0), SimpleNamespace(tokens_in=9, tokens_out=7, repeats=2)
    seen: list[list[list[int]]] = []

    def prompts(many: int, length: int) -> list[list[int]]:
        seen.append([[draw.randrange(5, 300) for _ in range(length)] for _ in range(many)])
        return seen[-1]

    found = batching.compared(arms, prompts, 3, asked)
    assert found["same"] == dict.fromkeys(arms, 1.0)
    assert len(seen) == 3  # one set a turn, and one to warm up
    assert all(len(turns) == 2 and min(turns) > 0 for turns in found["turns"].values())
    assert set(found["engine_over"]) == set(arms) - {"engine"}
    assert found["best_alternative"] in found["engine_over"]
