"""``memory3 calibrate``: what is fitted to a model before it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from memory3.cli import options
from memory3.cli.loading import full_name, load_model
from memory3.cli.output import count, duration, err, message, out, print_json, size
from memory3.cli.progress import progress_bar
from memory3.config import MemoryConfig
from memory3.errors import ConfigError

if TYPE_CHECKING:
    from memory3.codec import CodeBook
    from memory3.generate import Memory3
    from memory3.values import Document

__all__ = ["calibrate", "ensure_code_book"]


def calibrate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Catalogue name, hub id or folder. Default: smollm2-135m-instruct.", metavar="MODEL"
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Files or folders like those that will be written; may be repeated. Default: Python's language reference.",
            metavar="PATH",
        ),
    ] = None,
    codec: options.Codec = "product",
    preset: options.Preset = None,
    layers: options.Layers = None,
    budget: options.Budget = None,
    selector: options.Selector = None,
    reference_length: options.ReferenceLength = None,
    beginning: options.Beginning = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    batch_size: options.BatchSize = 16,
    as_json: options.Json = False,
) -> None:
    """Fit a vector codec to a model, for smaller banks.

    References are drawn from the data and encoded, and a code book is fitted to
    their keys and values. It is kept in the cache folder: banks that are made
    later with the same model, settings and --codec use it. `memory3 write` does
    the same by itself where there is none yet.

    [bold]Examples[/bold]

        memory3 calibrate --data docs/
        memory3 calibrate --codec int8
        memory3 write docs/ --bank bank --codec product
    """
    from memory3.text.readers import read_documents

    config = options.settings(MemoryConfig(), context.params)
    if config.codec == "raw":
        raise ConfigError(
            "codec 'raw' keeps numbers as they are, and has nothing to fit: name int8, int4, product or transform"
        )
    from memory3.model.catalogue import DEFAULT_MODEL

    name = full_name(model or DEFAULT_MODEL)
    m3 = load_model(name, config, device=device, batch_size=batch_size)
    started = time.monotonic()
    book = _fitted(m3, read_documents(*data) if data else None)
    _report(book, name, m3, time.monotonic() - started, as_json)


def ensure_code_book(m3: Memory3, documents: Callable[[], Iterable[Document]]) -> None:
    """Fit the codec of the model's settings to ``documents()``, unless that was done before."""
    from memory3.bank.codebooks import cached_book

    if m3.config.codec != "raw" and cached_book(m3.config.codec, m3.fingerprint) is None:
        message(f"fitting the codec {m3.config.codec} to these documents, once for this model and these settings")
        _fitted(m3, documents())


def _fitted(m3: Memory3, documents: Iterable[Document] | None) -> CodeBook:
    """The code book, its making shown on stderr: a bar with the time left while references are encoded."""
    from memory3.calibration.codec import calibrate as fit_codec
    from memory3.calibration.sample import default_documents

    started = time.monotonic()
    texts = default_documents() if documents is None else documents
    if not err.is_terminal:
        return fit_codec(m3, texts, progress=lambda what, done, total: None if done else message(what))
    with progress_bar() as bar:
        bar.add_task("", total=None, status="reading")

        def tell(what: str, done: int, total: int) -> None:
            left = (time.monotonic() - started) * (total - done) / done if done else 0.0
            status = f"{what}, {done} of {total}" if total else f"{what}, a minute or so"
            bar.update(
                bar.task_ids[0],
                completed=done,
                total=total or None,
                status=status + (f", {duration(left)} left" if left else ""),
            )

        return fit_codec(m3, texts, progress=tell)


def _report(book: CodeBook, model: str, m3: Memory3, seconds: float, as_json: bool) -> None:
    from memory3.bank.codebooks import cached_path
    from memory3.codec import CodedCodec, RawCodec

    path = cached_path(book.codec, book.memories)
    record, raw = CodedCodec(book).record_size, RawCodec(m3.shape).record_size
    if as_json:
        print_json(
            {
                "model": model,
                "codec": book.codec,
                "code_book": str(path),
                "fingerprint": book.fingerprint,
                "memories": book.memories,
                "bytes": len(book.data),
                "record_bytes": record,
                "raw_record_bytes": raw,
                "seconds": round(seconds, 3),
                **book.about,
            }
        )
        return
    out.print(f"{book.codec}: {size(record)} a memory instead of {size(raw)}, in {duration(seconds)}")
    out.print(
        f"fitted on {count(int(book.about['vectors']), 'pair')}; error on others: keys {book.about['keys_error']:.1%}, "
        f"values {book.about['values_error']:.1%} of their squared length"
    )
    out.print(f"kept in {path}", soft_wrap=True)
