"""A server on vLLM under load (``memory3 serve --engine vllm``): memories against vLLM with the same five passages in the
prompt, prefix caching on, and against vLLM that reads nothing.

It measures as `memory3.benchmarks.serve` does; run it in vLLM's environment.
"""

from __future__ import annotations

from typing import Any

from memory3.benchmarks import serve

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {**serve.OPTIONS, "engine": "vllm", "clients": "1,4,16", "tokens_in": "32"}


def run(**options: Any) -> dict[str, Any]:
    """For each length of prompt, number of clients and arm: medians over the turns, and ratios to mode memory.

    Args:
        options: as `memory3.benchmarks.serve.run`.
    """
    return serve.run(**options)
