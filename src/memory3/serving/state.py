"""`ServerState`: what all routes of a server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from memory3.bank.tiers import Tiers
from memory3.errors import MissingDependency
from memory3.llm import Memory3
from memory3.serving.base import BaseEngine
from memory3.serving.catalogue import Banks
from memory3.serving.data_folder import StorageLimits
from memory3.serving.keys import Keys, Tenant
from memory3.serving.limits import Limits
from memory3.serving.metrics import Metrics
from memory3.serving.storage import Storage

try:
    from starlette.requests import HTTPConnection
except ImportError as error:
    raise MissingDependency(str(error.name or "fastapi"), "serve", "memory3 serve") from None

__all__ = ["ServerState"]


@dataclass
class ServerState:
    """What all routes of a server share.

    Attributes:
        m3: the model.
        engine: answers.
        banks: that are served.
        keys: who may ask.
        limits: how much.
        metrics: what was done.
        folder: where files and vector stores of clients are kept; None: nothing is kept, and none can be made.
        cors: origins whose pages may ask; none: no page of another origin.
        started: Unix time.
        draining: whether it takes no more requests.
        end_by: `time.monotonic` by which requests that have begun have to end; None: it was not told to stop.
        storage: of files and vector stores, in ``folder``.
    """

    m3: Memory3
    engine: BaseEngine
    banks: Banks
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    folder: Path | None = None
    cors: tuple[str, ...] = ()
    started: float = field(default_factory=time.time)
    draining: bool = False
    end_by: float | None = None
    storage: Storage | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and self.storage is None:
            limits = StorageLimits(file_bytes=self.limits.upload_bytes)
            self.storage = Storage(
                self.folder,
                self.m3,
                self.banks,
                limits=limits,
                is_answering=lambda: self.engine.state.running > 0,
                threads=self.engine.threads,
            )

        def tiers() -> list[Tiers]:
            return [tiers for one in self.banks if (tiers := getattr(one.bank, "tiers", None)) is not None]

        self.metrics.show(lambda: self.engine.state, tiers)

    def tenant(self, request: HTTPConnection) -> Tenant:
        """Who asks: whom the key of the request belongs to, as `memory3.serving.guard` found out before any route ran."""
        tenant = request.state.tenant
        assert isinstance(tenant, Tenant)
        return tenant
