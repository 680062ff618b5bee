"""The model class ``memory3`` of lm-evaluation-harness: stock tasks and few-shot settings, answered from a bank.

    lm_eval --model memory3 --model_args bank=bank,mode=memory --tasks arc_easy

It is the harness's own ``hf`` class with references in front. Mode none is that class untouched. Mode memory looks up memories
by the clock (`memory3.recall.generate`): every 64 tokens of the context by their own text, then what a model would that writes
the continuation, so that nothing is looked up by an answer that is to be scored. Mode text puts into the prompt what the last
64 tokens of the context find.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memory3.errors import ConfigError, MissingDependency

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise MissingDependency(str(error.name or "lm_eval"), "eval", "the model class of lm-evaluation-harness") from None

from tqdm import tqdm

from memory3.bank import Bank, Hit
from memory3.config import MemoryConfig
from memory3.evaluation.guard import Guard
from memory3.llm import MODES, Memory3
from memory3.models.adapter import adapter_of, merge_adapter
from memory3.models.catalogue import DEFAULT_ADAPTED, resolve_model
from memory3.models.load import check_device, load_tokenizer
from memory3.prompt import PromptRow
from memory3.recall.retrieval import within
from memory3.scoring import Score
from memory3.types import Memory, Reference

__all__ = ["GuardedBank", "Memory3LM"]

#: (what was asked, or None), tokens of the context, tokens of the continuation
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class GuardedBank:
    """A bank that does not give out references which overlap what they are looked up by (`memory3.evaluation.guard`).

    Attributes:
        dropped: how many it held back.
    """

    def __init__(self, m3: Memory3, bank: Bank, guard: Guard) -> None:
        self.dropped = 0
        self._m3, self._bank, self._guard = m3, bank, guard

    def search(self, queries: Sequence[str], k: int, where: Any = None) -> list[list[Hit]]:
        """What the bank finds for each query, without the references that give the answer away.

        Args:
            queries: texts.
            k: hits per query at most, before the guard drops some.
            where: metadata that references must have; None: any.
        """
        found = self._bank.search(queries, k, where=where)
        if self._guard.threshold is None:
            return found
        tokens = {r.id: r.token_ids for r in self._bank.references([hit.reference_id for hits in found for hit in hits])}
        kept = []
        for query, hits in zip(queries, found, strict=True):
            asked = self._m3.prompts.ids(query)
            kept.append([hit for hit in hits if not self._guard.drops(asked, tokens[hit.reference_id])])
            self.dropped += len(hits) - len(kept[-1])
        return kept

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """The memories of references, in order, from the bank.

        Args:
            reference_ids: of the bank.
            use_cache: keep what is read in RAM.
            device: where keys and values are made; None: the CPU.
        """
        return self._bank.memories(reference_ids, use_cache=use_cache, device=device)

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order, from the bank."""
        return self._bank.references(reference_ids)

    def count(self, where: Any = None) -> int:
        """How many references the bank has with the metadata ``where``; all without it."""
        return self._bank.count(where)


@register_model("memory3")
class Memory3LM(HFLM):
    """``hf`` with references in front of every context."""

    def __init__(
        self,
        pretrained: str | None = None,
        bank: str | None = None,
        mode: str = "memory",
        k: int | str | None = None,
        guard: str = "2/3",
        preset: str = "default",
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a model, and the bank it answers from.

        Args:
            pretrained: catalogue name, hub id or folder; ``+ADAPTER`` behind it merges an adapter. Default: the model that
                wrote the bank.
            bank: folder of a bank written by this model; its own settings are used.
            mode: ``"memory"``, ``"text"`` or ``"none"``, which is the harness's ``hf`` class as it stands.
            k: references read at once; default: the bank's setting.
            guard: overlap above which a reference is not read, or ``"none"``.
            preset: settings of memories when there is no bank.
            dtype: default: float32 on the CPU, what the model was saved in elsewhere.
            kwargs: as the ``hf`` class takes them.

        Raises:
            ConfigError: an unknown mode, or one that needs a bank without one.
        """
        if mode not in MODES:
            raise ConfigError(f"mode {mode!r} is unknown: use one of {', '.join(MODES)}")
        if mode != "none" and bank is None:
            raise ConfigError(f"mode {mode!r} needs a bank: add bank=DIR to --model_args, or mode=none")
        manifest = Bank.describe(bank) if bank is not None else None
        pretrained = pretrained or (manifest.model if manifest else DEFAULT_ADAPTED)
        name, adapter = adapter_of(pretrained)
        where = resolve_model(name)
        device = check_device(str(kwargs.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")))
        if kwargs.pop("trust_remote_code", False):
            raise ConfigError(
                "trust_remote_code is refused: memory3 runs no code of a model's folder. Leave it out of --model_args"
            )
        dtype = dtype or ("float32" if device == "cpu" else "auto")
        super().__init__(pretrained=where, dtype=dtype, trust_remote_code=False, use_safetensors=True, **kwargs)
        if adapter:
            merge_adapter(self.model, adapter)
        self.mode = mode
        config = manifest.config if manifest else MemoryConfig.preset(preset)
        # A tokenizer of its own: the harness changes the padding of its one.
        tokenizer = load_tokenizer(name)
        self.m3 = Memory3(self.model, tokenizer, config, name=pretrained)
        self.k = config.references_per_chunk if k is None else int(k)
        self.gap = config.score_gap if k is None else 2.0
        self.bank: GuardedBank | None = None
        if bank is not None:
            self.bank = GuardedBank(self.m3, Bank.open(bank, self.m3, create=False), Guard.parse(str(guard)))

    @property
    def max_length(self) -> int:
        """Tokens of a context and what follows it, without what is put in front."""
        most = int(super().max_length)
        if not hasattr(self, "m3") or self.mode == "none":
            return most
        taken = self.m3.prompts.reserved(self.mode, self.k)
        if taken >= most:
            raise ConfigError(f"{self.k} references take all {most} positions of {self.m3.name}: lower k")
        return most - taken

    def _found(self, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Mode text: the contexts with passages in them."""
        assert self.bank is not None
        prompts = self.m3.prompts
        queries = [prompts.last_words(context, self.m3.config.chunk_length) for context in contexts]
        asked = [query for query in queries if query]
        hits = iter(self.bank.search(asked, self.k) if asked else [])
        rows = []
        for context, query in zip(contexts, queries, strict=True):
            mine = self.bank.references([hit.reference_id for hit in within(next(hits), self.gap)]) if query else []
            rows.append(prompts.around(context, "text", [reference.token_ids for reference in mine], style="plain"))
        return rows

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self.mode == "none":
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return found
        # What differs in its last token alone is one row: choices of one letter.
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for n, (_, context, continuation) in enumerate(requests):
            context = context[-max(1, self.max_length - len(continuation)) :]
            rows.setdefault((tuple(context), tuple(continuation[:-1])), []).append(n)
        order = sorted(rows, key=lambda key: (-len(key[0]) - len(key[1]), key))
        size = override_bs or (self.batch_size if isinstance(self.batch_size, int) else 8)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in tqdm(range(0, len(order), size), disable=disable_tqdm, desc=f"log-likelihoods, mode {self.mode}"):
            some = order[start : start + size]
            scores = self._scores(some, [[requests[n][2] for n in rows[key]] for key in some])
            for key, mine in zip(some, scores, strict=True):
                for n, score in zip(rows[key], mine, strict=True):
                    results[n] = (score.total, score.greedy)
                    asked = requests[n][0]
                    if asked is not None:
                        self.cache_hook.add_partial("loglikelihood", asked, results[n])
        return results

    def _scores(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Score]]:
        """For each row (context, and what its continuations have before their last token), the score of each continuation."""
        contexts = [list(context) for context, _ in rows]
        if self.mode == "text":
            return self.m3.scorer.score([PromptRow(row) for row in self._found(contexts)], continuations)
        fed = [[*context, *before] for context, before in rows]
        with self.m3.recall(self.bank, k=self.k, gap=self.gap, prompt=fed, answer_tokens=[len(before) for _, before in rows]):
            return self.m3.scorer.score([PromptRow(row) for row in contexts], continuations)

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        if self.mode == "none":
            found: torch.Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
            return found
        if self.mode == "memory":
            with torch.inference_mode(), self.m3.recall(self.bank, k=self.k, gap=self.gap):
                return super()._model_generate(context, max_length, stop, **generation_kwargs)
        mask = generation_kwargs.pop("attention_mask")
        rows = self._found([row[keep.bool()].tolist() for row, keep in zip(context, mask, strict=True)])
        tokens, mask = self.m3.prompts.pad(rows)
        new = max_length - context.shape[1]
        with torch.inference_mode():
            out = super()._model_generate(tokens, tokens.shape[1] + new, stop, attention_mask=mask, **generation_kwargs)
        return torch.cat([context, out[:, tokens.shape[1] :]], dim=1)
