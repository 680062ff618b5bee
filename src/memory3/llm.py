"""`Memory3`: a language model that writes and reads explicit memories.

Three modes answer from the same bank: ``memory`` reads key-values, ``text`` puts the same references into the prompt
(RAG), ``none`` is closed-book.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import torch
from transformers import PreTrainedModel, StoppingCriteriaList

from memory3.answer import Answer, Timings
from memory3.asking import collect, prepare
from memory3.codec.registry import check as check_codec
from memory3.config import MemoryConfig
from memory3.decoding import TokenClock, decoding
from memory3.encode.encoder import Encoder
from memory3.encode.selector_weights import SelectorWeights, find_weights
from memory3.encode.selectors import find as find_selector
from memory3.encode.selectors import is_fitted
from memory3.errors import ConfigError, InputError, ModelError
from memory3.garbage import collecting_later
from memory3.models.active import check_complete, check_deterministic, state_mark
from memory3.models.adapter import own_folder, with_adapter
from memory3.models.catalogue import DEFAULT_ADAPTED
from memory3.models.chosen import settings_of
from memory3.models.fingerprint import fingerprint, other_formats, whole_model
from memory3.models.frame import Frame
from memory3.models.geometry import ModelGeometry
from memory3.models.load import load_model
from memory3.prompt import MODES, Prompt, PromptBuilder, PromptRow, check_mode
from memory3.proof import proven
from memory3.recall.current import Nobody, belong_to, install
from memory3.recall.generate import Recall
from memory3.recall.retrieval import EVERYTHING, Retrieval, one_version, pinned, retrievals
from memory3.scoring import Scorer
from memory3.text.splitting import split
from memory3.types import Document, Memory, MemoryShape, Reference

if TYPE_CHECKING:
    from memory3.attention.watching import Watch
    from memory3.bank import Bank

__all__ = ["MODES", "Memory3", "TokenClock"]


class Memory3:
    """A causal language model with explicit memory.

    Attributes:
        model: the transformers model, untouched outside of `recall` and `encode`.
        tokenizer: its fast tokenizer.
        config: how memories are written and read.
        name: what it was loaded by, so that a bank knows its model.
        batch_size: references per forward pass when writing.
        prompts: builds, pads and trims its prompts.
        scorer: scores given answers to them.
        proof: that it reads from memories what it reads from text, and how far the two differ.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        config: MemoryConfig | None = None,
        *,
        name: str = "",
        batch_size: int = 16,
    ) -> None:
        """Attach to a model that is loaded already.

        Raises:
            UnsupportedModel: the architecture keeps no keys that memories could join, or reads them otherwise than text
                (`memory3.proof`).
            ModelError: the model is in training mode with dropout.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.config = config or MemoryConfig()
        _check_names(self.config)
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.batch_size = batch_size
        check_complete(model)
        check_deterministic(model)
        self.geometry = ModelGeometry(model)
        self.frame = Frame.of(tokenizer, self.config)
        self._fitted: dict[str, SelectorWeights | None] = {}
        weights = self.fitted(self.config.selector)
        if is_fitted(self.config.selector) and weights is None:
            of, more = "model", ""
            if find_selector(self.config.selector).fits_budget:
                of, more = "model and budget", f" --budget {self.config.budget}"
            raise ConfigError(
                f"selector {self.config.selector!r} was not fitted to this {of} yet: `memory3 calibrate --selector "
                f"{self.config.selector}{more}` does it, or use reconstruction"
            )
        self.encoder = Encoder(model, self.geometry, self.frame, self.config, weights.by_layer if weights else None)
        self.prompts = PromptBuilder(
            model,
            tokenizer,
            self.frame,
            name=self.name,
            positions=self.geometry.max_positions,
            reference_length=self.config.reference_length,
            chunk_length=self.config.chunk_length,
        )
        self.scorer = Scorer(model, self.prompts, self.encoder)
        install(self.geometry.base)
        with belong_to(Nobody(), self.geometry.base):  # whatever is open around, in this thread or another
            self.proof = proven(model, self.geometry, tokenizer, self.whole_model)
        self._state_mark = state_mark(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = DEFAULT_ADAPTED,
        *,
        adapter: str | os.PathLike[str] | None = None,
        config: MemoryConfig | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
        **kwargs: Any,
    ) -> Memory3:
        """Load a model by catalogue name, hub id or path.

        Args:
            name: any Llama-, Qwen- or Mistral-like id or folder, or a name of the catalogue such as
                ``"smollm2-135m-instruct"``, which is that model untouched. Default: that model with the adapter that
                taught it to read memories.
            adapter: folder of an adapter or the name of a shipped one (`memory3.models.adapter`), or ``"none"``. Default:
                what the name says behind a ``+``.
            config: a `MemoryConfig` or the name of a preset (``"default"``, ``"paper"``, ``"full"``). Default: what
                `memory3 calibrate --choose` chose for it here, what the model or its adapter was trained for, or the preset
                ``"default"``.
            device, dtype, kwargs: see `memory3.models.load.load_model`.
            batch_size: references per forward pass when writing.
        """
        name = with_adapter(os.fspath(name), None if adapter is None else os.fspath(adapter))
        if isinstance(config, str):
            config = MemoryConfig.preset(config)
        if config is not None:
            _check_names(config)
        with collecting_later():
            model, tokenizer = load_model(name, device=device, dtype=dtype, **kwargs)
            return cls(model, tokenizer, config or settings_of(name), name=name, batch_size=batch_size)

    # ---- writing: what a bank asks for (memory3.bank.MemoryWriter) ---------------------------------------------------

    @property
    def shape(self) -> MemoryShape:
        """Of every memory this model writes under its config."""
        return self.encoder.shape

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that can change a memory; see `memory3.models.fingerprint`."""
        weights = self.fitted(self.config.selector)
        mark = weights.fingerprint if weights else ""
        return fingerprint(self.model, self.geometry, self.tokenizer, self.frame, self.config, mark)

    @cached_property
    def whole_model(self) -> str:
        """Hash of the model itself; see `memory3.models.fingerprint.whole_model`."""
        return whole_model(self.model, self.geometry, self.tokenizer, self.frame, self.config)

    def in_other_formats(self) -> Iterator[tuple[str, str]]:
        """`whole_model` and `fingerprint` of these weights in every other number format they may be loaded in. Hashes all
        weights twice for each.
        """
        parts = (self.model, self.geometry, self.tokenizer, self.frame, self.config)
        weights = self.fitted(self.config.selector)
        for dtype in other_formats(self.model):
            of_model = whole_model(*parts, rounded=dtype)
            yield of_model, fingerprint(*parts, weights.fingerprint if weights else "", rounded=dtype)

    @property
    def learned(self) -> SelectorWeights | None:
        """What selectors ``learned`` and ``blended`` know of this model, if it was fitted to it."""
        return self.fitted("learned")

    def fitted(self, selector: str) -> SelectorWeights | None:
        """What a selector knows of this model; None: it was not fitted to it, or never is.

        Args:
            selector: its name.
        """
        kept_as = self.kept_as(selector)
        if not kept_as:
            return None
        if kept_as not in self._fitted:
            shape = self.geometry
            width, folder = find_selector(selector).width(shape.heads * shape.head_dim), own_folder(self.name)
            self._fitted[kept_as] = find_weights(self.whole_model, shape.full_layers, width, shape.kv_heads, folder, kept_as)
        return self._fitted[kept_as]

    def kept_as(self, selector: str) -> str:
        """The kind under which `memory3.encode.selector_weights` keeps what is fitted of a selector; empty: nothing is.

        Args:
            selector: its name.
        """
        kind, budget = find_selector(selector), self.config.budget
        if not kind.fits_budget:
            return kind.fitted_as
        heads = len(self.geometry.memory_layers(self.config)) * self.geometry.kv_heads
        return f"{kind.fitted_as}-{budget.kind}-{budget.pairs(heads, self.config.reference_length)}"

    def check_unchanged(self) -> None:
        """Raise ModelError where the model is no longer what this object was made of: other weights, another adapter,
        modules that were exchanged.
        """
        now = state_mark(self.model, self.tokenizer)
        if now == self._state_mark:
            return
        check_complete(self.model)
        check_deterministic(self.model)
        if whole_model(self.model, self.geometry, self.tokenizer, self.frame, self.config) != self.whole_model:
            raise ModelError(
                f"{self.name} has changed since Memory3 was made of it (its weights, or the adapter that is active): "
                "make a new Memory3 of it"
            )
        self._state_mark = now

    @property
    def encoders(self) -> int:
        """How many threads best call `encode` at once when a bank is written: on a CPU as many as torch works on, each alone;
        elsewhere one: more were never tried there.
        """
        return torch.get_num_threads() if self.model.device.type == "cpu" else 1

    @property
    def angles(self) -> torch.Tensor:
        """float32 ``[r/2]``: RoPE's angle per position, by which codecs turn the keys of a memory back; layers without
        RoPE are packed by it too.
        """
        return self.geometry.inv_freq

    @property
    def token_vectors(self) -> torch.Tensor:
        """``[V, e]``: the model's embeddings, from which codecs predict."""
        embeddings = self.model.get_input_embeddings()
        assert isinstance(embeddings.weight, torch.Tensor)
        return embeddings.weight.detach()

    def split(self, document: Document) -> Iterator[Reference]:
        """References of a document, at most ``config.reference_length`` tokens each."""
        return split(document, self.tokenizer, self.config.reference_length)

    def encode(self, references: Sequence[Reference]) -> list[Memory]:
        """Memories of the references; one forward pass.

        Raises:
            ModelError: the model has changed since this object was made.
        """
        self.check_unchanged()
        if torch.is_autocast_enabled(self.model.device.type):
            raise ModelError(
                "memories are not written under autocast, which rounds them otherwise than the fingerprint says: "
                "leave it, or load the model in that dtype"
            )
        return self.encoder.encode(references)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def recall(
        self,
        bank: Any,
        *,
        k: int | None = None,
        gap: float | None = None,
        where: Mapping[str, Any] | None = None,
        prompt: Sequence[Sequence[int]] | None = None,
        answer_tokens: Sequence[int] | None = None,
        references: Sequence[Sequence[str]] | None = None,
        chunk_references: Sequence[Sequence[Sequence[str]]] | None = None,
        use_cache: bool = True,
        retrieval: Retrieval | Sequence[Retrieval] | None = None,
    ) -> Recall:
        """Context in which plain ``model.generate()`` and ``model()`` read memories of a bank.

        Args:
            bank: a `Bank`, or whatever offers `memory3.recall.retrieval.MemorySource`.
            k: references read at once at most; default ``config.references_per_chunk``.
            gap: see ``config.score_gap``, which is the default unless ``k`` is given: then all k are read.
            where: only references whose metadata have these values.
            prompt: token ids of each row without padding, when they will be fed in several passes: a chunk is looked up
                by all of its text.
            answer_tokens: how many of the last tokens of each announced prompt are an answer to be scored: they read what
                they would if they were being decoded.
            references: per prompt, the reference ids to read, instead of looking them up.
            chunk_references: the same for each chunk of each prompt (`memory3.recall.chunks`); for prompts that are read
                and not continued.
            use_cache: keep memories in the bank's RAM cache.
            retrieval: all of what is looked up as one value, or one for each prompt, instead of ``k``, ``gap``, ``where``
                and the references.

        Raises:
            ModelError: the model has changed since this object was made, and the bank's memories with it.
            ConfigError: what is looked up was given twice.
        """
        each = self._retrievals(retrieval, k, gap, where, references, chunk_references)
        return self._recall(bank, each, prompt=prompt, answer_tokens=answer_tokens, use_cache=use_cache)

    def retrieval(self, k: int | None, gap: float | None, where: Mapping[str, Any] | None) -> Retrieval:
        """What a request looks up, as its caller and the settings say.

        Args:
            k, gap, where: as in `recall`.
        """
        within = gap if gap is not None else self.config.score_gap if k is None else EVERYTHING
        return Retrieval(self.config.references_per_chunk if k is None else k, within, where)

    def _retrievals(
        self,
        given: Retrieval | Sequence[Retrieval] | None,
        k: int | None,
        gap: float | None,
        where: Mapping[str, Any] | None,
        references: Sequence[Sequence[str]] | None = None,
        chunk_references: Sequence[Sequence[Sequence[str]]] | None = None,
    ) -> Retrieval | Sequence[Retrieval]:
        """What each prompt looks up: as given, or made of its parts."""
        if given is None:
            return retrievals(self.retrieval(k, gap, where), references, chunk_references)
        if any(part is not None for part in (k, gap, where, references, chunk_references)):
            raise ConfigError("give either retrieval, or k, gap, where and references: a retrieval says all of these")
        return given

    def _recall(self, bank: Any, each: Retrieval | Sequence[Retrieval], **options: Any) -> Recall:
        if not getattr(bank, "live", False):
            self.check_unchanged()
        chunk = self.config.chunk_length
        return Recall(self.model, self.geometry, self.tokenizer, self.encoder, bank, each, chunk_length=chunk, **options)

    @overload
    def generate(self, prompt: str, bank: Bank | None = None, **options: Any) -> Answer: ...
    @overload
    def generate(self, prompt: Sequence[Prompt], bank: Bank | None = None, **options: Any) -> list[Answer]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        bank: Bank | None = None,
        *,
        mode: str = "memory",
        k: int | None = None,
        gap: float | None = None,
        where: Mapping[str, Any] | None = None,
        references: Sequence[str] | Sequence[Sequence[str]] | None = None,
        retrieval: Retrieval | Sequence[Retrieval] | None = None,
        max_new_tokens: int | None = None,
        streamer: Any = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> Answer | list[Answer]:
        """Answer a question, or a list of questions as one batch.

        Args:
            prompt: a question; the messages of a chat (``[{"role": "user", "content": ...}, ...]``); or a list of either.
            bank: where to look. Without one only mode ``"none"`` can answer.
            mode: ``"memory"``, ``"text"`` or ``"none"``.
            k, gap, where: as in `recall`.
            references: ids of the references to read, instead of looking them up; for a list of questions one list each.
            retrieval: as in `recall`; for a list of questions one for all, or a list.
            max_new_tokens: length of an answer at most; default: what ``generation_config`` says, else 128.
            streamer: as transformers takes it; a single question only.
            watch: is told which heads looked at what; a single question in mode ``"memory"`` only, without beams.
            options: passed to ``model.generate`` (``do_sample=True, temperature=0.7``, ``num_beams=4``, ...). Over a
                ``generation_config`` among them they win; greedy where neither says otherwise.

        Raises:
            InputError: an empty question, or one that does not fit into the model's context.
            ConfigError: an unknown mode, or a mode that needs a bank without one.
        """
        started = time.perf_counter()
        check_mode(mode, bank)
        bank = one_version(bank)
        settings, others = decoding(self.model, max_new_tokens, options)
        if not isinstance(prompt, Sequence):
            raise InputError(f"a question is text, or the messages of a chat, not {prompt!r:.40}")
        single = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping))
        prompts: list[Any] = [prompt] if single else list(prompt)
        if not prompts:
            raise InputError("no question was given")
        if not all(isinstance(one, str) or (isinstance(one, Sequence) and one) for one in prompts):
            raise InputError("a question is text, or the messages of a chat")
        given: Any = [references] if single and references is not None else references
        if given is not None and len(given) != len(prompts):
            raise ConfigError(f"references were given for {len(given)} of {len(prompts)} questions")
        if given is not None and any(isinstance(one, str) for one in given):
            raise ConfigError("references of several questions are a list of ids for each of them")
        looked_up = self._retrievals(retrieval, k, gap, where, given)
        each = [looked_up] * len(prompts) if isinstance(looked_up, Retrieval) else list(looked_up)
        if len(each) != len(prompts):
            raise ConfigError(f"a retrieval was given for {len(each)} of {len(prompts)} questions")
        asked = prepare(prompts, each, self.prompts, bank, mode)
        self.prompts.check_length([one.tokens for one in asked], settings.max_new_tokens or 0, mode)

        clock = TokenClock()
        criteria = StoppingCriteriaList([*(others.pop("stopping_criteria", None) or []), clock])
        recall = self._recall(bank, each, watch=watch) if mode == "memory" else None
        tokens, mask = self.prompts.pad([one.tokens for one in asked])
        if settings.pad_token_id is None:
            settings.pad_token_id = self.prompts.pad_id
        generate: Any = self.model.generate
        with belong_to(Nobody(), self.geometry.base), torch.inference_mode():
            call = {
                "attention_mask": mask,
                "streamer": streamer,
                "stopping_criteria": criteria,
                "generation_config": settings,
                "tokenizer": self.tokenizer,
                **others,
            }
            if recall is None:
                out = generate(tokens, **call)
            else:
                with recall:
                    out = generate(tokens, **call)
        out = getattr(out, "sequences", out)
        said = [self.prompts.trim(ids, settings.eos_token_id) for ids in out[:, tokens.shape[1] :].tolist()]
        timings = Timings.of(started, clock.times, time.perf_counter(), said)
        answers = collect(asked, said, self.tokenizer, bank, recall, timings)
        return answers[0] if single and len(answers) == 1 else answers

    def log_likelihood(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        bank: Bank | None = None,
        *,
        mode: str = "memory",
        k: int | None = None,
        gap: float | None = None,
        where: Mapping[str, Any] | None = None,
        references: Sequence[Sequence[str]] | None = None,
    ) -> list[tuple[float, int]]:
        """How likely the model finds an answer to each prompt, in nats (natural logarithm), and of how many tokens it is.

        One forward pass. The answer's tokens read the memories they would if they were being decoded.

        Args:
            prompts: questions or chats.
            answers: one to each.
            bank, mode, k, gap, where, references: as in `generate`.

        Raises:
            InputError: an empty question or answer, or a prompt that does not fit into the model's context.
            ConfigError: an unknown mode, or a mode that needs a bank without one.
        """
        check_mode(mode, bank)
        bank = one_version(bank)
        counted = {"answers": answers, "lists of references": prompts if references is None else references}
        for what, given in counted.items():
            if isinstance(prompts, str) or isinstance(given, str) or len(given) != len(prompts):
                raise ConfigError(
                    f"{what} were given for {len(given)} of {len(prompts)} prompts: give lists of the same length"
                )
        ids = [self.prompts.ids(answer) for answer in answers]
        if not ids or not all(ids):
            raise InputError("an answer is empty: give at least one word")
        common = self.retrieval(k, gap, where)
        each = [common] * len(prompts) if references is None else pinned(common, references)
        rows = [one.tokens for one in prepare(prompts, each, self.prompts, bank, mode)]
        self.prompts.check_length([[*row, *answer] for row, answer in zip(rows, ids, strict=True)], 0, mode)
        with ExitStack() as stack:
            stack.enter_context(belong_to(Nobody(), self.geometry.base))
            if mode == "memory":
                fed = [[*row, *answer[:-1]] for row, answer in zip(rows, ids, strict=True)]
                counts = [len(answer) - 1 for answer in ids]
                stack.enter_context(self._recall(bank, each, prompt=fed, answer_tokens=counts))
            found = self.scorer.score([PromptRow(row) for row in rows], [[answer] for answer in ids])
        return [(score.total, score.tokens) for (score,) in found]

    # ---- prompts -----------------------------------------------------------------------------------------------------

    def question_tokens(self, question: str) -> list[int]:
        """Token ids of what follows the memories in a prompt: a question and the rest of its turn."""
        return self.prompts.around(self.prompts.ids(question), "memory")


def _check_names(config: MemoryConfig) -> None:
    """Raise ConfigError where the settings name a codec or a selector that does not exist, before a model is loaded for
    them.
    """
    check_codec(config.codec)
    find_selector(config.selector)
