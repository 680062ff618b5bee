"""`Memory3Connector`: the seam through which vLLM's scheduler and workers speak with one another about memories.

Settings, in ``kv_connector_extra_config``:

    banks           {"name": "folder", ...}   what requests may read
    default_bank    name of the bank of requests that name none; without it they read nothing
    most_references references that a request may ask for at once; 64
    pool_bytes      decoded memories that a worker keeps beyond those that running requests read; 1 GiB
    shares          whether workers count the attention that references get, for whoever calls `paid`; false
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.utils import extract_layer_index

from memory3.vllm.asked import KEY, MOST
from memory3.vllm.attention import READING, context_of
from memory3.vllm.paying import Paid, Payments
from memory3.vllm.planning import Planner, Scheduled
from memory3.vllm.pool import Pool
from memory3.vllm.reading import Context, Layouts, StepReading
from memory3.vllm.refusals import check_config, check_layers, own_heads
from memory3.vllm.shelf import shelf_of
from memory3.vllm.step import Step

__all__ = ["Memory3Connector", "paid"]

log = logging.getLogger("vllm")
_POOL = 1 << 30
_SETTINGS = ("banks", "default_bank", "most_references", "pool_bytes", "shares")


class _Metadata(KVConnectorMetadata):
    """A step on its way to the workers."""

    def __init__(self, step: Step) -> None:
        self.step = step


class _Failures(KVConnectorWorkerMetadata):
    """What workers could not read in a step, on its way to the scheduler. ``by_request``: why."""

    def __init__(self, by_request: dict[str, str]) -> None:
        self.by_request = by_request

    def aggregate(self, other: KVConnectorWorkerMetadata) -> _Failures:
        """Of all workers.

        Args:
            other: of another one.
        """
        assert isinstance(other, _Failures)
        return _Failures({**self.by_request, **other.by_request})


class Memory3Connector(KVConnectorBase_V1):
    """Made by vLLM, once in the scheduler and once in each worker.

    Attributes:
        planner: of the scheduler; None in a worker.
        pool: of a worker, once it has its cache; None in the scheduler.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """
        Args:
            vllm_config: of the engine.
            role: scheduler or worker.
            kv_cache_config: how its cache is laid out.

        Raises:
            ConfigError, UnsupportedModel: memories cannot be read right in this engine; says why.
        """
        super().__init__(vllm_config, role, kv_cache_config)
        settings = dict(self._kv_transfer_config.kv_connector_extra_config)
        self._shelf = shelf_of(str(vllm_config.model_config.model))
        check_config(vllm_config, kv_cache_config, self._shelf.card, settings, _SETTINGS)
        self._shelf.offer(settings.get("banks", {}))
        self._config = vllm_config
        self._manager: Any = None
        self._capacity = int(settings.get("pool_bytes", _POOL))
        self._counts = bool(settings.get("shares"))
        self._payments: Payments | None = None
        self._layouts: Layouts | None = None
        self._failures: dict[str, str] = {}
        self.planner: Planner | None = None
        self.pool: Pool | None = None
        if role == KVConnectorRole.SCHEDULER:
            size, most = vllm_config.cache_config.block_size, int(settings.get("most_references", MOST))
            self.planner = Planner(self._shelf, block_size=size, default=settings.get("default_bank"), most=most)

    # ---- in the scheduler --------------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """A request has come."""
        assert self.planner is not None
        self.planner.arrive(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """No token's keys and values come from here; None while it is not known what the request reads.

        Args:
            request: of the scheduler.
            num_computed_tokens: that its cache holds.
        """
        assert self.planner is not None
        return (0 if self.planner.is_ready(request.request_id) else None), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is kept about blocks."""

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        """The scheduler's cache is there."""
        super().bind_kv_cache_manager(kv_cache_manager)
        self._manager = kv_cache_manager

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """What the workers must know of a step.

        Args:
            scheduler_output: the step.
        """
        assert self.planner is not None
        cached = scheduler_output.scheduled_cached_reqs
        starts = {one.req_id: one.num_computed_tokens for one in scheduler_output.scheduled_new_reqs}
        starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        state = scheduler_output.kv_connector_block_state
        step = self.planner.step(
            [
                Scheduled(name, starts[name], tokens, (state.get_block_ids(name) or ((),))[0])
                for name, tokens in scheduler_output.num_scheduled_tokens.items()
            ]
        )
        self._evict()
        return _Metadata(step)

    def update_connector_output(self, connector_output: Any) -> None:
        """A step was made. Requests whose memories a worker could not read are refused.

        Args:
            connector_output: of all workers.
        """
        told = connector_output.kv_connector_worker_meta
        if self.planner is not None and isinstance(told, _Failures):
            self.planner.refuse(told.by_request)
            self._evict()

    def _evict(self) -> None:
        """No other request may read what was computed without the memories that its key says."""
        assert self.planner is not None
        spoiled = self.planner.spoiled()
        if spoiled:
            self._manager.evict_blocks(spoiled)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended.

        Args:
            request: of the scheduler.
            block_ids: of its cache, which vLLM frees.

        Returns:
            False, and what it read, for its response.
        """
        assert self.planner is not None
        told = self.planner.leave(request)
        if told is not None and "error" in told[KEY] and self.planner.failed is None:  # in a stream, vLLM tells nobody
            log.warning("memory3: request %s is ended: %s", request.request_id, told[KEY]["error"])
        return False, told

    # ---- in a worker -------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The worker has its cache, and its layers are there.

        Args:
            kv_caches: by name of the layer.
        """
        layers = self._config.compilation_config.static_forward_context
        check_layers({name: layers[name] for name in kv_caches})
        cache = next(iter(kv_caches.values()))
        device, card = cache.device, self._shelf.card
        decoder = self._shelf.decoder
        self.pool = Pool(self._capacity, lambda packed: decoder.decode(packed, device))
        parallel = self._config.parallel_config
        heads = own_heads(card.shape.kv_heads, parallel.tensor_parallel_size, get_tensor_model_parallel_rank())
        ordered = sorted(kv_caches, key=extract_layer_index)

        def contexts() -> list[Context]:
            return [context_of(kv_caches[name]) for name in ordered]

        self._payments = Payments() if self._counts else None
        dtype = self._config.model_config.dtype
        self._layouts = Layouts(card, self.pool, dtype, device, heads, contexts, self._payments)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """A step begins: memories it needs are decoded, and its rows are found in vLLM's batch.

        Args:
            connector_metadata: as `build_connector_meta` made it.
        """
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, _Metadata)
        step = connector_metadata.step
        if self.pool is None or self._layouts is None:
            return
        step = self._decoded(step, self.pool)
        self.pool.update(step.reads, step.ended)
        if not step.rows:
            self._layouts.seats.begin(step, [])
            return
        metadata = get_forward_context().attn_metadata
        each = {id(one): one for one in metadata.values()} if isinstance(metadata, dict) else {}
        (own,) = each.values()  # one group of layers, as was checked at the start
        reading = StepReading(step, self._layouts, own.query_start_loc, own.slot_mapping, own.block_table)
        setattr(own, READING, reading)

    def _decoded(self, step: Step, pool: Pool) -> Step:
        """The step with its memories in the pool. The scheduler has decoded them before. Where it fails here all the same, the
        requests that read them do so without, and are refused when the scheduler hears of it.
        """
        for form in step.forms:
            try:
                self._shelf.decoder.learn(form)
            except Exception as error:  # then nothing that is packed so can be decoded
                log.error("memory3: %s", error)
        failed = pool.take(step.packed)
        if failed:
            step, wrong = step.without(failed.keys())
            why = "; ".join(sorted({str(error) for error in failed.values()}))[:500]
            self._failures |= dict.fromkeys(wrong, f"a worker could not read its memories: {why}")
        return step

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """What the scheduler is told of a step: whose memories could not be read."""
        failures, self._failures = self._failures, {}
        return _Failures(failures) if failures else None

    def take_paid(self, request: str) -> Paid:
        """Attention to references that a request's tokens paid, as far as it was not told yet.

        Args:
            request: its id.
        """
        return {} if self._payments is None else self._payments.take(request)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded into vLLM's cache: memories lie beside it."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """There is nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """There is nothing to wait for."""

    def shutdown(self) -> None:
        """End the thread that searches."""
        if self.planner is not None:
            self.planner.close()


def paid(worker: Any, request: str) -> Paid:
    """`Memory3Connector.take_paid`, called in each worker by vLLM's ``collective_rpc``.

    Args:
        worker: of vLLM.
        request: see there.
    """
    connector = get_kv_transfer_group()
    assert isinstance(connector, Memory3Connector)
    return connector.take_paid(request)
