"""`Inner`: vLLM's own engine in this process, with memory3's connector in it. All methods are for one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory3.errors import ServingError
from memory3.llm import Memory3
from memory3.vllm.card import make_folder
from memory3.vllm.planning import Planner
from memory3.vllm.plugin import CONNECTOR, register

__all__ = ["Inner", "settings_of"]


def settings_of(m3: Memory3, folder: str | Path, *, slots: int, prompt_tokens: int, cache_bytes: int) -> dict[str, Any]:
    """What ``EngineArgs`` is made of. The model's folder is made.

    Args:
        m3: the model.
        folder: where what vLLM loads is made, unless it is there.
        slots: requests in one step at most.
        prompt_tokens: of all prompts together in one step at most.
        cache_bytes: of the paged cache.
    """
    return {
        "model": str(make_folder(m3, folder)),
        "dtype": str(m3.model.dtype).removeprefix("torch."),
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "max_model_len": m3.geometry.max_positions,
        "max_num_seqs": slots,
        "max_num_batched_tokens": max(prompt_tokens, slots),
        "kv_cache_memory_bytes": cache_bytes,
        "disable_hybrid_kv_cache_manager": True,
        "disable_log_stats": True,
        "trust_remote_code": False,
    }


class Inner:
    """Runs steps.

    Attributes:
        planner: of the connector in its scheduler.
        inside: numbers of the requests that vLLM knows.
        is_told: whether workers know of all that have ended: what they keep of a request goes with the next step.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """
        Args:
            settings: of ``EngineArgs``.
        """
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        register()
        from vllm import EngineArgs, SamplingParams
        from vllm.config import KVTransferConfig
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        from memory3.vllm.connector import paid

        extra = {"shares": True, "most_references": sys.maxsize}  # how many may be asked for, the server has looked at
        transfer = KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_consumer", kv_connector_extra_config=extra)
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**{"kv_transfer_config": transfer, **settings}))
        self._params: Any = lambda options: SamplingParams(**options, output_kind=RequestOutputKind.DELTA, detokenize=False)
        self.planner: Planner = self._engine.engine_core.engine_core.scheduler.connector.planner
        self._paid = paid
        self.inside: set[int] = set()
        self.is_told = True

    def check_card(self, m3: Memory3) -> None:
        """Refuse a folder that another process made anew, for other settings, while vLLM read it.

        Args:
            m3: the model that the folder was made for.

        Raises:
            ServingError: it was.
        """
        card = self.planner.shelf.card
        if (card.fingerprint, card.config) != (m3.fingerprint, m3.config):
            self.close()
            raise ServingError(f"{card.folder} was made anew by another process while vLLM started: start again")

    def add(self, number: int, tokens: Sequence[int], options: dict[str, Any]) -> None:
        """Let a request in.

        Args:
            number: that it is known by.
            tokens: of its prompt.
            options: of ``SamplingParams``.
        """
        self._engine.add_request(str(number), {"prompt_token_ids": list(tokens)}, self._params(options))
        self.inside.add(number)

    def abort(self, number: int) -> None:
        """End a request where it stands."""
        self.inside.discard(number)
        self.is_told = False
        self._engine.abort_request([str(number)])

    def step(self) -> list[tuple[int, Any]]:
        """One step. Returns what it gave, by number of the request."""
        outputs = [(number_of(one.request_id), one) for one in self._engine.step()]
        finished = {number for number, one in outputs if one.finished}
        self.inside -= finished
        self.is_told = not finished
        return outputs

    def paid(self, request: str) -> dict[int, dict[str, float]]:
        """Attention to references that a request's tokens paid since the last call, by token.

        Args:
            request: its id inside vLLM.
        """
        whole: dict[int, dict[str, float]] = {}
        for counted in self._engine.collective_rpc(self._paid, args=(request,)):  # of each worker, for its own heads
            for at, mass in counted.items():
                sums = whole.setdefault(at, {})
                for name, value in mass.items():
                    sums[name] = sums.get(name, 0.0) + value
        return whole

    def close(self) -> None:
        """End it."""
        self._engine.engine_core.shutdown()


def number_of(request: str) -> int:
    """Of a request by its id: vLLM puts something behind the one that we gave."""
    return int(request.partition("-")[0])
