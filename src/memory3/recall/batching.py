"""Continuous batching: many requests in one forward pass, each with its own memories, its own clock and its own context.
They come and go at any step.

    stream = Stream(...)                   one request
    stream.begin(); stream.lookups         what has to be found before it goes on
    stream.receive(hits); stream.load()    what was found, and its memories laid out
    batch.step([stream, ...])              a pass of those that are ready; each has its next token then

`Stream` is one request's adapter between its memory (`memory3.recall.request`) and the pass; `Batch` runs the pass. What is
looked up, when and by whom is the caller's affair, so that looking up can go on beside passes of other requests. Exact
twin: `memory3.recall.generate` with that request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from memory3.attention.attach import attached
from memory3.attention.kv_cache import grow
from memory3.attention.lane import Lanes, Seat, can_sit
from memory3.attention.layout import select_chunks
from memory3.attention.packed import PackedReading, Segment
from memory3.attention.reading import Reading
from memory3.choosing import Choice, Chooser
from memory3.encode.encoder import Encoder
from memory3.models.geometry import ModelGeometry
from memory3.recall.chunks import chunk_table
from memory3.recall.current import belong_to, install
from memory3.recall.request import RequestMemory
from memory3.recall.retrieval import MemorySource, Retrieval, SearchHit
from memory3.types import MemoryBatch

__all__ = ["Batch", "Stream"]


class Stream:
    """One request in a batch: the tokens it feeds next, its context and what it reads.

    Attributes:
        prompt: token ids.
        chosen: what its answer has so far.
        chooser: chooses its tokens.
        memory: what it reads; None: nothing.
        source: where its memories are; the bank as it was when the request came.
        cache: its context, until it has a seat.
        seat: where it decodes beside others; None: by itself, or not yet.
        has_left: whether it will not be fed any more (`leave`).
    """

    def __init__(
        self,
        encoder: Encoder,
        prompt: Sequence[int],
        chooser: Chooser,
        source: MemorySource | None = None,
        retrieval: Retrieval | None = None,
        *,
        text_of: Callable[[Sequence[int]], str],
    ) -> None:
        """
        Args:
            encoder: of the model, which lays memories out.
            prompt: token ids.
            chooser: of its tokens.
            source: a bank, of one version; None: it reads nothing.
            retrieval: what it looks up there.
            text_of: the text of tokens.
        """
        self.prompt = list(prompt)
        self.chosen: list[Choice] = []
        self.chooser = chooser
        self.source = source
        self.cache = DynamicCache()
        self.seat: Seat | None = None
        self.has_left = False
        self.memory: RequestMemory | None = None
        if source is not None and retrieval is not None and not retrieval.finds_nothing(source):
            self.memory = RequestMemory(
                encoder.frame,
                retrieval,
                chunk_length=encoder.config.chunk_length,
                room=encoder.config.reference_length,
                text_of=text_of,
                prompt=self.prompt,
            )
        self._encoder = encoder
        self._fed = 0  # tokens that are in the cache
        self._told = 0  # tokens that its memory knows of
        self._batch: MemoryBatch | None = None  # what the chunks of the prompt read
        self._reading: Reading | None = None  # of decoded tokens
        self._last_prompt: Reading | None = None  # of the prompt's last token, which chooses the answer's first

    # ---- before a pass -----------------------------------------------------------------------------------------------

    @property
    def is_prompt_read(self) -> bool:
        """Whether all of the prompt is in the cache."""
        return self._fed >= len(self.prompt)

    @property
    def pending(self) -> int:
        """How many tokens wait to be fed."""
        return len(self.prompt) + len(self.chosen) - self._fed

    @property
    def is_done(self) -> bool:
        """Whether its answer has ended."""
        if not self.chosen:
            return False
        return self.chosen[-1].token in self.chooser.ends or len(self.chosen) >= self.chooser.length

    @property
    def answer(self) -> list[int]:
        """Token ids of the answer so far, without the one that ended it."""
        ids = [choice.token for choice in self.chosen]
        return ids[:-1] if ids and ids[-1] in self.chooser.ends else ids

    def begin(self) -> None:
        """Tell its memory what comes next. Then `lookups` are to be answered by `receive`, and `load` called, before the
        next pass; `needs_memories` says whether.
        """
        if self.memory is None:
            return
        if not self._fed:
            self.memory.feed([])  # the prompt was announced
            self.memory.lie_at(0)
        elif self.is_prompt_read and self._told < len(self.chosen):
            self._told = len(self.chosen)
            self.memory.feed([self.chosen[-1].token])

    @property
    def needs_memories(self) -> bool:
        """Whether what it reads has to be decided before the next pass."""
        return self.memory is not None and self.memory.is_waiting

    @property
    def lookups(self) -> list[str]:
        """Texts to search for."""
        return [] if self.memory is None else self.memory.lookups

    def would_read(self, hits: Sequence[Sequence[SearchHit]]) -> list[str]:
        """Ids of all references that `receive` may have it read (`RequestMemory.would_read`)."""
        return [] if self.memory is None else self.memory.would_read(hits)

    def receive(self, hits: Sequence[Sequence[SearchHit]]) -> list[str]:
        """Take what was found for each of `lookups`. Returns the ids of all references that are read now."""
        assert self.memory is not None
        self.memory.receive(hits)
        return list(dict.fromkeys(name for chunk in self.memory.chunks for name in chunk.references))

    def load(self, memories: Mapping[str, Any]) -> None:
        """Lay out what is read now.

        Args:
            memories: by id; those that `receive` named.
        """
        memory = self.memory
        assert memory is not None
        memory.statistics.bytes_read += sum(one.bytes_read for one in memories.values())
        chunks = [chunk.references for chunk in memory.chunks] or [memory.reading]
        moved, missing = [memory.moved] * len(chunks), [memory.place.missing] * len(chunks)
        if not self.is_prompt_read:
            self._batch = self._encoder.lay_out(chunks, memories, moved, missing)
            return
        self.settle()
        self._reading = Reading(self._encoder.lay_out(chunks, memories, moved, missing))

    def sit(self, lanes: Lanes, *, has_windows: bool) -> bool:
        """Decode its next token beside others, where that can be. Returns whether.

        Args:
            lanes: where it sits down.
            has_windows: whether layers of the model attend within a window, which lanes do not.
        """
        if self.seat is None:
            if has_windows or not can_sit(self.cache):
                return False
            self.seat = lanes.take(self.cache)
            self.cache = DynamicCache()
        self.seat = lanes.with_room(self.seat)
        if self._reading is not None and self._reading is not self.seat.reading:
            self.seat.lane.lead(self.seat, self._reading)
        return True

    def leave(self) -> None:
        """It will not be fed any more: its seat is free from the next pass on. From any thread."""
        self.has_left = True

    def next_token(self) -> tuple[int, int]:
        """The token that it feeds in the next pass, its prompt being read, and that one's position."""
        at, memory = self._fed, self.memory
        self._fed += 1
        if memory is not None and at >= memory.place.split:
            at += memory.shift
        return self.chosen[-1].token, at

    def segment(self, start: int, most: int, windows: Mapping[int, torch.Tensor]) -> tuple[Segment, list[int], list[int]]:
        """Its part of the next pass where it has no seat: the segment, its tokens and their positions.

        Args:
            start: column of its first token.
            most: tokens of a prompt that are fed at most.
            windows: see `Segment`.
        """
        if self.is_prompt_read:
            if self._reading is None:
                grow(self.cache)
            else:
                self._reading.follow(self.cache)
            token, place = self.next_token()
            return Segment(start, start + 1, self.cache, self._reading, windows), [token], [place]
        end = min(len(self.prompt), self._fed + most)
        tokens, at = self.prompt[self._fed : end], list(range(self._fed, end))
        reading, memory = None, self.memory
        if memory is not None:
            memory.feed(tokens)
            reading = self._prompt_reading(at)
            at = [n + memory.shift if n >= memory.place.split else n for n in at]
        self._fed = end
        return Segment(start, start + len(tokens), self.cache, reading, windows), tokens, at

    def _prompt_reading(self, at: Sequence[int]) -> Reading:
        assert self.memory is not None
        assert self._batch is not None
        device = self._encoder.model.device
        index = torch.tensor([list(at)], device=device)
        behind = index >= self.memory.place.split
        table = chunk_table(
            [(0, chunk.start, chunk.end) for chunk in self.memory.chunks], self._encoder.config.chunk_length, index, behind
        )
        reading = Reading(self._batch, table, watched=torch.tensor([len(at) - 1], device=device))
        if at[-1] + 1 == len(self.prompt):
            self._last_prompt = reading
            self._inherit()
        return reading

    def _inherit(self) -> None:
        """Let the tokens to be decoded read what the prompt's last chunk reads."""
        assert self._batch is not None
        self._reading = Reading(select_chunks(self._batch, [len(self._batch.references) - 1]))

    # ---- after a pass ------------------------------------------------------------------------------------------------

    def take(self, choice: Choice) -> None:
        """Its next token was chosen."""
        self.chosen.append(choice)
        self._batch = None  # the prompt has been read

    def settle(self) -> None:
        """Count the attention paid since the last call: by reference, and by token of the answer."""
        memory, reading = self.memory, self._reading
        if memory is None or reading is None:
            return
        for one in (self._last_prompt, reading):
            if one is None:
                continue
            before = one.looked
            paid = one.settle_each(reading.batch)[0].tolist()
            names = reading.batch.references[0]
            memory.pay_each([dict(zip(names, row, strict=False)) for row in paid], one.looked - before)
        self._last_prompt = None

    # ---- what its answer was read from -------------------------------------------------------------------------------

    def shares(self, first: int, last: int) -> list[tuple[str, float, float]]:
        """What a stretch of its answer was read from: as `RequestMemory.shares`, of the answer's tokens from ``first`` to
        before ``last``; of those whose attention was counted (`settle`).
        """
        return [] if self.memory is None else self.memory.shares_of(first, last)

    # ---- its next memories -------------------------------------------------------------------------------------------

    @property
    def is_near_renewal(self) -> bool:
        """Whether it will look for memories again in a few tokens (`RequestMemory.is_near_renewal`), which an answer that ends
        before does not.
        """
        left = self.chooser.length - len(self.chosen)
        return self.memory is not None and self.memory.is_near_renewal and left > self.memory.until_renewal

    def next_query(self) -> str:
        """By what it would look for memories if it did so now."""
        return "" if self.memory is None else self.memory.next_query()


class Batch:
    """Runs forward passes of many streams on one model, within ``with batch``. One thread at a time."""

    def __init__(self, model: PreTrainedModel, geometry: ModelGeometry) -> None:
        self._model = model
        self._geometry = geometry
        self._base = geometry.base
        self._has_windows = len(geometry.full_layers) < geometry.num_layers
        self._reader: PackedReading | None = None
        self._lanes = Lanes()
        self._seated: list[Stream] = []
        # Transformers makes no mask where it is given one of four dimensions; ours are the segments'.
        self._mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=model.device)
        self._open = ExitStack()
        install(self._base)

    def __enter__(self) -> Batch:
        with ExitStack() as stack:
            stack.enter_context(attached(self._model))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand the pass its reader.

        Args:
            args, kwargs: of the forward pass.
        """
        return args, {**kwargs, "memory3": self._reader}

    @torch.inference_mode()
    def step(self, streams: Sequence[Stream], prompt_tokens: int = 1 << 30) -> list[Stream]:
        """One pass. Streams whose prompt is read choose a token each.

        Args:
            streams: none of which `needs_memories`.
            prompt_tokens: of all prompts together that are fed at most; at least one token of the first prompt is.

        Returns:
            those that chose one.
        """
        self.sweep()
        segments: list[Segment] = []
        tokens: list[int] = []
        positions: list[int] = []
        seated, others = self._seat(streams)
        lanes = self._lanes.begin([stream.seat for stream in seated if stream.seat is not None])
        chosen = [seated[number] for _, numbers in lanes for number in numbers]
        for stream in chosen:
            token, place = stream.next_token()
            tokens.append(token)
            positions.append(place)
        last = list(range(len(chosen)))
        for stream in others:
            is_prompt = not stream.is_prompt_read
            if is_prompt and prompt_tokens <= 0:
                continue
            segment, mine, at = stream.segment(len(tokens), prompt_tokens, self._masks(stream))
            if is_prompt:
                prompt_tokens -= len(mine)
            tokens += mine
            positions += at
            segments.append(segment)
            if stream.is_prompt_read:
                chosen.append(stream)
                last.append(len(tokens) - 1)
        device = self._model.device
        self._reader = PackedReading(segments, [(lane, len(numbers)) for lane, numbers in lanes])
        try:
            with belong_to(self, self._base):
                out = self._model(
                    input_ids=torch.tensor([tokens], device=device),
                    position_ids=torch.tensor([positions], device=device),
                    attention_mask=self._mask,
                    use_cache=False,
                    logits_to_keep=torch.tensor(last, dtype=torch.int64, device=device),
                )
                self._choose(chosen, out.logits[0])
        finally:
            self._reader = None
        return chosen

    @torch.inference_mode()
    def sweep(self) -> None:
        """Free the seats of streams that have left, or whose answer has ended."""
        for stream in [one for one in self._seated if one.has_left or one.is_done]:
            self._seated.remove(stream)
            if stream.seat is not None:
                self._lanes.leave(stream.seat)
                stream.seat = None

    def _seat(self, streams: Sequence[Stream]) -> tuple[list[Stream], list[Stream]]:
        """Those that decode in lanes, and the others."""
        seated: list[Stream] = []
        others: list[Stream] = []
        for stream in streams:
            sat = stream.seat is not None
            try:
                sits = stream.is_prompt_read and stream.sit(self._lanes, has_windows=self._has_windows)
            finally:  # also where its memories find no room: its seat has to be freed
                if stream.seat is not None and not sat:
                    self._seated.append(stream)
            (seated if sits else others).append(stream)
        return seated, others

    def _masks(self, stream: Stream) -> Mapping[int, torch.Tensor]:
        """What tokens of layers with a window see, for a context as long as this stream's will be."""
        if not self._has_windows:
            return {}
        whole = len(stream.prompt) + stream.chooser.length
        return self._geometry.windows(self._model, 1 << (whole - 1).bit_length())

    def _choose(self, streams: Sequence[Stream], logits: torch.Tensor) -> None:
        greedy = logits.argmax(-1).tolist()
        for stream, row, likeliest in zip(streams, logits, greedy, strict=True):
            chooser = stream.chooser
            stream.take(Choice(likeliest) if chooser.is_greedy else chooser.choose(row))
