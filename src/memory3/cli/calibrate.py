"""``memory3 calibrate``: what is fitted to a model before it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory3.cli import options
from memory3.cli.command import first_screen
from memory3.cli.loading import full_name, load_model
from memory3.cli.output import count, duration, err, message, out, print_json, size
from memory3.cli.progress import StepMeter, progress_bar
from memory3.codec.registry import shown
from memory3.config import MemoryConfig
from memory3.errors import ConfigError

if TYPE_CHECKING:
    from memory3.calibration.selector import Passage
    from memory3.codec import Codebook
    from memory3.llm import Memory3
    from memory3.types import Document

__all__ = ["calibrate", "ensure_code_book"]


def calibrate(
    context: typer.Context,
    model: options.AnyModel = None,
    data: options.Data = None,
    questions: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "JSON lines of passage, question and answer that the selectors learned, blended and weighed are fitted to; "
                "may be repeated. Without it, a selector that is there already stays; a new one predicts what the model "
                "looks at while it repeats --data, or, weighed, is fitted to sentences of --data with a gap."
            ),
            metavar="FILE",
        ),
    ] = None,
    choose: Annotated[
        bool,
        typer.Option(
            "--choose",
            help=(
                "Choose selector, temperature, budget and codec for this model by the measurements of `memory3 check`, "
                "beginning at the settings given, and keep them: new banks of it are written with them."
            ),
        ),
    ] = False,
    codec: Annotated[str | None, first_screen(options.Codec)] = None,
    preset: options.Preset = None,
    layers: options.Layers = None,
    budget: options.Budget = None,
    selector: Annotated[str | None, first_screen(options.Selector)] = None,
    reference_length: options.ReferenceLength = None,
    memory_prefix: options.MemoryPrefix = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    batch_size: options.BatchSize = 16,
    as_json: options.Json = False,
) -> None:
    """Fit to a model what chooses and packs its memories: minutes, once.

    The codebook of a codec: memories in an eighth of the bytes. And with --selector
    learned, which key-values of a text will be looked at, predicted from the text
    alone, so that writing takes one pass and not two. With --selector weighed, how
    much each head's choice counts: for models that lose answers at their budget. All
    are kept in the cache folder, and banks made later with the same model and
    settings use them. For the default model codebook and learned come with memory3.
    With --choose, the settings themselves are chosen, with a check at the end.

    [bold]Examples[/bold]

        memory3 calibrate --model Qwen/Qwen2.5-0.5B-Instruct --data docs/
        memory3 calibrate --selector learned --questions reading.jsonl
        memory3 calibrate --model ./qwen --selector weighed --codec raw --data docs/
        memory3 calibrate --model ./qwen --choose --data docs/
        memory3 calibrate --codec int8
        memory3 write docs/ --bank bank --codec product
    """
    from memory3.llm import Memory3
    from memory3.models.catalogue import DEFAULT_ADAPTED
    from memory3.models.chosen import settings_of
    from memory3.text.readers import read_documents

    name = full_name(model or DEFAULT_ADAPTED)
    config = options.settings(settings_of(name) or MemoryConfig(), context.params)
    from memory3.encode.selectors import is_fitted

    learns = is_fitted(config.selector)
    if config.codec == "raw" and not (learns and selector) and not choose:
        raise ConfigError("codec 'raw' keeps numbers as they are, and has nothing to fit: name another")
    started = time.monotonic()
    if questions and not learns:
        raise typer.BadParameter(
            f"selector {config.selector!r} is not fitted to questions: give --selector learned, blended or weighed, too"
        )
    m3 = load_model(name, config.replace(selector="first") if learns else config, device=device, batch_size=batch_size)
    if learns:
        if questions or m3.fitted(config.selector) is None:
            texts = read_documents(*data) if data else None
            _fit_selector(m3, config.selector, [Path(path) for path in questions or ()], texts)
        m3 = Memory3(m3.model, m3.tokenizer, config, name=name, batch_size=batch_size)
    if choose:
        _choose(m3, data, as_json)
        return
    if config.codec == "raw":
        _report_selector(name, m3, time.monotonic() - started, as_json)
        return
    book = _fitted(m3, read_documents(*data) if data else None)
    _report(book, name, m3, time.monotonic() - started, as_json)


def _choose(m3: Memory3, data: Sequence[str] | None, as_json: bool) -> None:
    """Settings chosen for the model, a bar on stderr meanwhile. Exit status 1: its memories should not be used."""
    from memory3.calibration.sample import default_documents
    from memory3.checking.choosing import choose
    from memory3.text.readers import read_documents

    with StepMeter() as meter:
        found = choose(
            m3,
            lambda: read_documents(*data) if data else default_documents(),
            progress=lambda what, done, more: meter(f"{what}:", int(100 * done), 100, more),
        )
    verdict = found["check"]["verdict"]
    if as_json:
        print_json({"model": m3.name, **found})
    else:
        for step in found["steps"]:
            told = f"{step['setting'].replace('_', ' ')} {step['value']}"
            if "nll" in step:
                low, high = step["interval"]
                told += f": {step['nll']:.2f} nats a token, {step['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
            out.print(told + (" (taken)" if step["taken"] else ""))
        out.print(verdict["sentence"])
        if found["kept"]:
            out.print(f"kept in {found['kept']}", soft_wrap=True)
    if not verdict["ok"]:
        raise typer.Exit(1)


def _fit_selector(m3: Memory3, selector: str, questions: Sequence[Path], documents: Iterable[Document] | None) -> None:
    """Fit the selector to questions, or to texts where there are none; a bar with the time left on stderr."""
    from memory3.calibration.sample import default_documents
    from memory3.calibration.selector import Passage, calibrate_selector, passages_in, read_questions
    from memory3.calibration.weighing import calibrate_weighed
    from memory3.encode.selectors.weighed import Weighed

    weighs = selector == Weighed.name
    if questions:
        passages = passages_in(record for path in questions for record in read_questions(path))
    else:
        texts = default_documents() if documents is None else documents
        passages = _with_gaps(m3, texts) if weighs else (Passage(d.text) for d in texts)
    fit = calibrate_weighed if weighs else calibrate_selector
    if not err.is_terminal:
        message("fitting the selector")
        fit(m3, passages)
        return
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("", total=None, status="fitting the selector")

        def tell(done: int, total: int) -> None:
            left = duration((time.monotonic() - started) * (total - done) / done)
            bar.update(task, completed=done, total=total, status=f"fitting the selector, {done} of {total}, {left} left")

        fit(m3, passages, progress=tell)


def _with_gaps(m3: Memory3, documents: Iterable[Document]) -> Iterator[Passage]:
    """References with sentences of theirs that lack a name or number, for selectors that want questions."""
    from memory3.calibration.selector import Passage
    from memory3.training.cloze import cloze_questions

    for document in documents:
        for reference in m3.split(document):
            asked = [(one.question, one.answer) for one in cloze_questions([reference.text], 3)]
            if asked:
                yield Passage(reference.text, asked)


def ensure_code_book(m3: Memory3, documents: Callable[[], Iterable[Document]]) -> None:
    """Fit the codec that the settings name to ``documents()``, unless that was done before."""
    from memory3.bank.codebooks import cached_codebook

    if m3.config.codec not in ("auto", "raw") and cached_codebook(m3.config.codec, m3.fingerprint) is None:
        message(f"fitting the codec {shown(m3.config.codec)} to these documents, once for this model and these settings")
        _fitted(m3, documents())


def _fitted(m3: Memory3, documents: Iterable[Document] | None) -> Codebook:
    """The codebook, its making shown on stderr: a bar with the time left while references are encoded."""
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


def _report_selector(model: str, m3: Memory3, seconds: float, as_json: bool) -> None:
    from memory3.encode.selectors import find

    weights = m3.fitted(m3.config.selector)
    assert weights is not None
    about = dict(weights.about)
    losses = about.pop("loss", [])
    if as_json:
        found = {"model": model, "selector": m3.config.selector, "fingerprint": weights.fingerprint, "losses": losses}
        print_json({**found, "seconds": round(seconds, 3), **about})
        return
    said = ", ".join(count(int(about[what]), what[:-1]) for what in ("passages", "questions") if what in about)
    out.print(f"selector {find(m3.config.selector).name}: fitted on {said}, in {duration(seconds)}")
    if losses:
        part = max(1, len(losses) // 4)
        first, last = (sum(some) / len(some) for some in (losses[:part], losses[-part:]))
        out.print(f"divergence from all pairs: {first:.3f} in the first quarter of the steps, {last:.3f} in the last")


def _report(book: Codebook, model: str, m3: Memory3, seconds: float, as_json: bool) -> None:
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
    out.print(f"{shown(book.codec)}: {size(record)} a memory instead of {size(raw)}, in {duration(seconds)}")
    out.print(
        f"fitted on {count(int(book.about['vectors']), 'pair')}; error on others: keys {book.about['keys_error']:.1%}, "
        f"values {book.about['values_error']:.1%} of their squared length"
    )
    out.print(f"kept in {path}", soft_wrap=True)
