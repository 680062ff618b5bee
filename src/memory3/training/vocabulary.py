"""A tokenizer of fewer tokens for small models from scratch.

With 49,152 of them, a model of a million other weights is mostly vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from memory3.errors import ConfigError, InputError
from memory3.models.load import load_tokenizer
from memory3.training.records import training_records

__all__ = ["SMALLEST", "train_vocabulary"]

#: 256 bytes, and room for the special tokens of a chat format.
SMALLEST = 512
_AT_ONCE = 1000


def train_vocabulary(
    of: str,
    data: Sequence[str | Path],
    size: int,
    out: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Train a tokenizer of the kind of another on the texts and passages of data files.

    It has that one's algorithm, special tokens and chat format.

    Args:
        of: catalogue name, hub id or folder of a model.
        data: files of records, as training takes them.
        size: tokens at most, special ones included.
        out: folder it is saved in; what `memory3.models.scratch.from_scratch` then takes for ``tokenizer``.
        progress: told how many texts are read, of how many.

    Returns:
        Tokens it has; fewer than ``size`` where the texts have no more to merge.

    Raises:
        ConfigError: ``size`` is too small, or more than the other has.
        InputError: the data has no texts.
        ModelError: there is no such tokenizer.
    """
    base = load_tokenizer(of)
    if not SMALLEST <= size <= len(base):
        raise ConfigError(f"a tokenizer of {size} tokens cannot be had of {of}: give {SMALLEST} to {len(base)}")
    records = training_records(data)
    texts = [*dict.fromkeys(question.passage for question in records.questions), *dict.fromkeys(records.texts)]
    if not texts:
        raise InputError("there is no text to train a tokenizer on: give files with texts or passages")

    def parts() -> Iterator[list[str]]:
        for start in range(0, len(texts), _AT_ONCE):
            progress(start, len(texts))
            yield texts[start : start + _AT_ONCE]
        progress(len(texts), len(texts))

    trained = base.train_new_from_iterator(parts(), size, show_progress=False)
    out.mkdir(parents=True, exist_ok=True)
    trained.save_pretrained(str(out))
    return len(trained)
