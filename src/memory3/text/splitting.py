"""Cut documents into references of at most so many model tokens, at the strongest boundary that leaves them well filled.

Knows the model's tokenizer and nothing else of the model.

Why not the library semantic-text-splitter: it measures the whole rest of a paragraph again for every reference, so unbroken
text costs the square of its length (78,000 characters without a space: 10 s); it leaves a heading alone when the paragraph
below is long; and it holds the line ends of hard-wrapped prose for stronger than the ends of sentences.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import regex

from memory3.errors import ConfigError, InputError, ModelError
from memory3.text.tables import Table, tables
from memory3.tokenizing import tokenize
from memory3.types import Document, Reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["split"]

# A boundary is the end of a match. Newlines stay with what they end and spaces with the word they precede, because that is how
# byte-level vocabularies cut text too: "end." | " Next" are the tokens that the uncut text has.
_PARAGRAPH = re.compile(r"\n\s*\n|\r\r+")
_SENTENCE = regex.compile(
    r"""(?: (?<![\p{Sentence_Terminal}…]) | \G )
        [\p{Sentence_Terminal}…]++ ["'\p{Pe}\p{Pf}]*+ (?: [^\S\n]*+\n | (?=\s) ) (?=\s*+[^\s\p{Ll}])
      | [。！？．｡]++ ["'\p{Pe}\p{Pf}]*+""",
    regex.VERBOSE,
)
_LINE = re.compile(r"\n|\r(?!\n)")
_WORD = re.compile(r"(?=\s)(?<!\r)")
_GRAPHEME = regex.compile(r"\X")

_VISIBLE = re.compile(r"\S")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

#: Tokens of a reference per token that a header may have, and characters of it that are looked at per token.
_HEADER_SHARE = 3
_HEADER_CHARACTERS = 16

#: Characters looked at together, per token of a reference: about twenty references of prose.
_WINDOW_CHARACTERS_PER_TOKEN = 100


def split(document: Document, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Iterator[Reference]:
    """Cut a document into references of 1 to ``max_tokens`` tokens, each tokenised alone and without special tokens.

    Joined, the texts of the references are the document's text. A reference ends at the last paragraph, else sentence, else
    line, else word, else grapheme that leaves it at least half full; a sentence is only cut when it is longer than a
    reference. White space goes with a neighbour; only a run longer than a reference stands alone. A document without any
    token (empty, or white space alone) has no references.

    A reference that begins within a table is read with the table's header in front, where that takes no more than a third
    of it.

    Control tokens spelt out in the text (``<|im_end|>``) are tokenised as ordinary characters, so that no document can close
    the turn it is read in.

    Args:
        document: any length; looked at through a window, so references come one by one.
        tokenizer: a fast tokenizer of transformers, the model's own.
        max_tokens: upper bound of tokens per reference.

    Raises:
        ConfigError: ``max_tokens`` is not a positive whole number, or a single character has more tokens.
        InputError: the text has lone surrogates, which no tokenizer can read.
        ModelError: the tokenizer is not a fast one, or drops characters (language models' tokenizers do not).
    """
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ConfigError(f"max_tokens must be a whole number from 1, not {max_tokens!r}")
    if not tokenizer.is_fast:
        raise ModelError(f"{type(tokenizer).__name__} tells no character offsets: load the fast version of the tokenizer")
    if surrogate := _SURROGATE.search(document.text):
        raise InputError(
            f"document {document.id!r} has a lone surrogate at character {surrogate.start()}: "
            "replace it, for example by text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        )
    return _references(document, tokenizer, max_tokens)


def _references(document: Document, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Iterator[Reference]:
    text = document.text
    content_end = len(text.rstrip())
    if not content_end:
        return
    window = _Window(text, 0, content_end, tokenizer, max_tokens)
    if not window.token_starts:
        return
    headers = _Headers(text, tokenizer, max_tokens)
    start = ordinal = 0
    while start < len(text):
        if window.ends_soon_after(start):
            window = _Window(text, start, content_end, tokenizer, max_tokens)
        header, reserved = headers.before(start)
        budget = max_tokens - reserved
        while True:
            end = window.cut(start, budget)
            token_ids = _encode(tokenizer, header + text[start:end])["input_ids"]
            if len(token_ids) <= max_tokens:
                break
            if budget == 0 and header:
                header, budget = "", max_tokens
                continue
            if budget == 0:
                raise ConfigError(
                    f"{text[start:end]!r} at character {start} of document {document.id!r} has {len(token_ids)} tokens, "
                    f"more than max_tokens={max_tokens}: use longer references"
                )
            # Merges across a boundary can make a piece longer alone than it was in its context.
            budget = max(0, budget - (len(token_ids) - max_tokens))
        if not token_ids:
            raise ModelError(f"the tokenizer has no token for {text[start:end]!r}: it drops characters that others keep")
        yield Reference(
            id=f"{document.id}#{ordinal}",
            document_id=document.id,
            ordinal=ordinal,
            start=start,
            end=end,
            text=text[start:end],
            token_ids=tuple(token_ids),
            source=document.source,
            metadata=document.metadata,
            header=header,
        )
        start, ordinal = end, ordinal + 1


class _Headers:
    """The headers of a text's tables, asked for in order."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.most = max_tokens // _HEADER_SHARE
        self.coming = tables(text)
        self.table: Table | None = next(self.coming, None)

    def before(self, start: int) -> tuple[str, int]:
        """What heads a reference that begins at ``start``, and its tokens: the part of a table's header that stands before.

        Where the header with its rule is too long the header row alone is taken.
        """
        while self.table is not None and self.table.end <= start:
            self.table = next(self.coming, None)
        table = self.table
        if table is None or start <= table.start:
            return "", 0
        for end in dict.fromkeys((min(start, table.body), min(start, table.head))):
            if end - table.start <= self.most * _HEADER_CHARACTERS:
                header = self.text[table.start : end]
                size = len(_encode(self.tokenizer, header)["input_ids"])
                if size <= self.most:
                    return header, size
        return "", 0


class _Window:
    """A stretch of text with its tokens and boundaries, all as character offsets into the whole text."""

    def __init__(self, text: str, start: int, content_end: int, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.text = text
        self.content_end = content_end
        self.max_tokens = max_tokens
        size = max_tokens * _WINDOW_CHARACTERS_PER_TOKEN
        while True:
            self.end = min(start + size, len(text))
            offsets = _encode(tokenizer, text[start : self.end], return_offsets_mapping=True)["offset_mapping"]
            if len(offsets) > 2 * max_tokens or self.end == len(text):
                break
            size *= 2  # long runs of white space have few tokens or none
        self.token_starts = [start + first for first, _ in offsets]
        self.paragraphs = self._ends(_PARAGRAPH, start)
        self.sentences = sorted({*self.paragraphs, *self._ends(_SENTENCE, start)})
        self.lines = self._ends(_LINE, start)
        self.words = self._ends(_WORD, start)

    def _ends(self, pattern: re.Pattern[str] | regex.Pattern[str], start: int) -> list[int]:
        return [match.end() for match in pattern.finditer(self.text, start, self.end)]

    def ends_soon_after(self, position: int) -> bool:
        """Whether a cut after ``position`` could depend on text beyond the window: the reference and the sentence after it."""
        ahead = len(self.token_starts) - bisect_left(self.token_starts, position)
        return ahead <= 2 * self.max_tokens and self.end < len(self.text)

    def cut(self, start: int, budget: int) -> int:
        """Where the reference that begins at ``start`` ends if it may have ``budget`` tokens, but with one token at least."""
        first = bisect_left(self.token_starts, start)
        limit = self._start_of(first + budget)
        if limit == len(self.text):
            return limit
        low = self.token_starts[first] + 1
        visible = _VISIBLE.search(self.text, start, limit)
        if visible is None:
            return max(limit, low)
        low, high = max(low, visible.end()), limit
        if self._tail_fits():
            high = min(high, self.content_end - 1)
        half = self._start_of(first + (budget + 1) // 2)
        for level in (self.paragraphs, self.sentences, self.lines, self.words):
            end = _last(level, low, high)
            if end is not None and (end >= half or (level is self.sentences and self._sentence_fits(end))):
                return end
        # From a slice: \X counts a run of flags from the start of its text.
        graphemes = [start + match.end() for match in _GRAPHEME.finditer(self.text[start : high + 1])]
        return _last(graphemes[:-1], low, high) or max(low, high)

    def _tail_fits(self) -> bool:
        """Whether the white space that ends the text leaves room for words in the last reference."""
        tail = len(self.token_starts) - bisect_left(self.token_starts, self.content_end)
        return self.end == len(self.text) and tail <= self.max_tokens // 2

    def _start_of(self, token: int) -> int:
        return self.token_starts[token] if token < len(self.token_starts) else self.end

    def _sentence_fits(self, start: int) -> bool:
        following = bisect_right(self.sentences, start)
        end = self.sentences[following] if following < len(self.sentences) else self.end
        return bisect_left(self.token_starts, end) - bisect_left(self.token_starts, start) <= self.max_tokens


def _last(boundaries: Sequence[int], low: int, high: int) -> int | None:
    """The last boundary from ``low`` to ``high``, both included."""
    index = bisect_right(boundaries, high) - 1
    return boundaries[index] if index >= 0 and boundaries[index] >= low else None


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> dict[str, list]:
    return tokenize(
        tokenizer,
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
