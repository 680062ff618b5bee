"""`Metrics`: what a server did, for Prometheus. Sums over all clients and banks: nothing of it tells who asked what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from memory3.answer import Usage
from memory3.bank.tiers import Tiers, sum_of
from memory3.errors import MissingDependency
from memory3.serving.base import EngineState

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingDependency(str(error.name or "prometheus_client"), "serve", "memory3 serve") from None

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds.
_SOON = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Metrics:
    """Counts, in a registry of its own. Is the `Observer` of an engine.

    Attributes:
        registry: with all of it.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def count(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"memory3_{name}", help, labels, registry=self.registry)

        def times(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"memory3_{name}_seconds", help, labels, buckets=buckets, registry=self.registry)

        self._requests = count("http_requests", "Requests of HTTP.", "route", "status")
        self._request_seconds = times("http_request", "From the head of a request to the end of its response.", _SOON, "route")
        self._tokens = count("tokens", "Tokens: of prompts that were read, of answers that were chosen.", "kind")
        self._passes = count("passes", "Forward passes.")
        self._first = times("first_token", "From a request to its first token.", _SOON)
        self._retrieval = times("retrieval", "One go of embedding, search, read and layout, for all that waited.", _QUICK)
        self._looked_up = count("lookups", "Requests that were given what they read.")
        self._recalls = count("recalls", "Chunks that looked for memories.")
        self._references = count("references", "References that were read.")
        self._bytes = count("read_bytes", "Bytes of memories, or of passages, that were read.")
        self._finished = count("answers", "Answers that ended, by why.", "reason")

    def show(self, state: Callable[[], EngineState], tiers: Callable[[], list[Tiers]]) -> None:
        """Tell also what is so at the moment of asking.

        Args:
            state: of the engine.
            tiers: every bank's cache.
        """
        self.registry.register(_Now(state, tiers))

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return bytes(generate_latest(self.registry))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request of HTTP was answered.

        Args:
            route: its pattern, not its path, of which there may be any number.
            status: of HTTP.
            seconds: it took.
        """
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    # ---- Observer ----------------------------------------------------------------------------------------------------

    def first_token(self, seconds: float) -> None:
        """A request has its first token, ``seconds`` after it came."""
        self._first.observe(seconds)

    def tokens(self, prompt: int, answer: int) -> None:
        """A pass was made over ``prompt`` tokens of prompts and chose ``answer`` tokens of answers."""
        self._passes.inc()
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("answer").inc(answer)

    def looked_up(self, seconds: float, requests: int) -> None:
        """So many ``requests`` were given what they read, in one go of ``seconds``."""
        self._retrieval.observe(seconds)
        self._looked_up.inc(requests)

    def finished(self, reason: str, usage: Usage | None) -> None:
        """A request has ended for this ``reason``; what it took is its ``usage``."""
        self._finished.labels(reason).inc()
        if usage is not None:
            self._recalls.inc(usage.recalls)
            self._references.inc(usage.references)
            self._bytes.inc(usage.bytes_read)


class _Now(Collector):
    def __init__(self, state: Callable[[], EngineState], tiers: Callable[[], list[Tiers]]) -> None:
        self._state = state
        self._tiers = tiers

    def collect(self) -> Iterator[Any]:
        state, tiers = self._state(), self._tiers()
        told = sum_of(tiers)
        yield _gauge("running", "Requests that have a place in the batch.", state.running)
        yield _gauge("queue", "Requests that have none yet.", state.waiting)
        yield _gauge("looking", "Of the running ones, those that wait for their memories.", state.looking)
        each = {"device": told.device, "ram": told.ram, "disk": told.disk}
        for name, help in (("hits", "found"), ("misses", "not found"), ("evictions", "put out")):
            family = CounterMetricFamily(
                f"memory3_cache_{name}", f"Memories that were {help} in a tier of the banks' caches.", labels=["tier"]
            )
            for tier, said in each.items():
                family.add_metric([tier], getattr(said, name))
            yield family
        for name, part, help in (
            ("cache_bytes", "bytes", "Bytes in a tier."),
            ("cache_capacity_bytes", "capacity", "Bytes that it may hold."),
            ("cache_entries", "entries", "Memories and texts in a tier."),
        ):
            gauge = GaugeMetricFamily(f"memory3_{name}", help, labels=["tier"])
            for tier, said in each.items():
                gauge.add_metric([tier], getattr(said, part))
            yield gauge
        yield _counter("bank_reads", "Memories that no tier had.", told.bank)
        yield _counter("read_ahead", "Memories that were fetched before a request asked.", told.ahead)
        yield _gauge("banks", "Banks that are served.", len(tiers))


def _gauge(name: str, help: str, value: float) -> Any:
    return GaugeMetricFamily(f"memory3_{name}", help, value=value)


def _counter(name: str, help: str, value: float) -> Any:
    return CounterMetricFamily(f"memory3_{name}", help, value=value)
