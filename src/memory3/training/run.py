"""A run of training, from its settings to a folder.

RUN/settings.json                what the run is
RUN/groups.jsonl, held_back.jsonl    what it trains on, in order, and what it is looked at with
RUN/checkpoint-N/                to resume from
RUN/log.jsonl, runs/, losses.png     its losses (JSON lines, TensorBoard, a picture)
RUN/adapter/  or  RUN/model/     the result, with the memory settings it was trained for, and the selector it was trained with
                                 where that is a fitted one
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from memory3.encode.selector_weights import SelectorWeights, adapter_mark, keep_weights
from memory3.encode.selectors import is_fitted
from memory3.errors import ConfigError, InputError, MissingDependency, TrainingError
from memory3.files import write_atomically
from memory3.llm import Memory3
from memory3.models.adapter import adapter_of, write_about
from memory3.models.scratch import from_scratch
from memory3.training.checkpoints import last_checkpoint
from memory3.training.cloze import cloze_questions
from memory3.training.groups import Group, read_groups, write_groups
from memory3.training.logs import RunLog, curves_of, cut_log, draw_losses, read_log
from memory3.training.lora import export_adapter, with_lora
from memory3.training.preference import with_likelihoods
from memory3.training.records import training_records
from memory3.training.sampling import GroupMaker, documents_of
from memory3.training.settings import Settings
from memory3.training.stopping import StopOnSignal
from memory3.training.trainer import GroupTrainer, arguments

if TYPE_CHECKING:
    from accelerate import PartialState

    from memory3.bank import Bank

__all__ = ["Progress", "Result", "sample_groups", "train"]

#: Folder of a run that is still sampling: what another try was interrupted at. Runs of all versions call it so.
_UNFINISHED = "drawing"

#: What is done, how much of how much (0 of 0: nobody knows), and what to say of it.
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        run: its folder.
        main: whether this process, of several, speaks for them.
        trained: the adapter or the model; None when it was told to stop before its end.
        step: steps taken, earlier processes' included.
        steps: steps there are.
        seconds_per_step: median over this process; 0.0 when it took none.
        losses: the last of each curve of the log.
    """

    run: Path
    main: bool
    trained: Path | None
    step: int
    steps: int
    seconds_per_step: float
    losses: dict[str, float]


def train(
    settings: Settings, run: Path, *, resume: bool = False, device: str | None = None, progress: Progress | None = None
) -> Result:
    """Train, or go on training.

    Args:
        settings: of a new run; a run that is resumed has its own (`Settings.read`).
        run: its folder.
        resume: go on from the last checkpoint, bit for bit where the device computes so (the CPU does). Without a checkpoint:
            from the start.
        device: as `memory3.models.load.load_model` takes it.
        progress: told how far it is.

    Raises:
        TrainingError: the folder holds a run and ``resume`` was not said; another process trains in it; the loss is not a
            number; the disk is full.
        InputError: nothing to train on.
        ConfigError: the bank is another model's.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependency("accelerate", "train", "training") from error
    # The other processes wait for the one that samples.
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=timedelta(days=2))
    tell = progress if progress and state.is_main_process else _silent
    stored = run / "settings.json"
    if (run / "held_back.jsonl").exists() and not resume:
        raise TrainingError(f"{run} holds a training run: resume it with --resume, or give another folder")
    if resume and stored.exists():
        settings = Settings.read(stored)
    settings = _with_dtype(settings, device or str(state.device))
    _make_folder(run)
    with _alone(run) if state.is_main_process else nullcontext():
        return _train(settings, run, state, device or str(state.device), tell)


def _train(settings: Settings, run: Path, state: PartialState, device: str, tell: Progress) -> Result:
    stored, sampled = run / "settings.json", run / "held_back.jsonl"
    m3 = _load(settings, device)
    _ = m3.fingerprint  # of the weights alone: the bank that groups are sampled with is found again by it
    learned = m3.fitted(settings.memory.selector)
    model = with_lora(m3.model, settings)  # before sampling, which compares preferences with what training starts at
    with state.main_process_first():
        if not sampled.exists():
            _sample(m3, settings, run, state.num_processes, tell)
        elif not stored.exists():  # groups that somebody else laid there
            _write_settings(settings, run)
    settings = Settings.read(stored)  # how many steps there are is known since the groups are sampled
    groups = read_groups(run / "groups.jsonl")
    held_back: dict[str, list[Group]] = {}
    for group in read_groups(run / "held_back.jsonl"):
        held_back.setdefault(group.kind, []).append(group)

    checkpoint = last_checkpoint(run)
    start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if state.is_main_process:
        cut_log(run, start)
    log = RunLog(run, lambda step, steps, loss: tell("training", step, steps, f"loss {loss:.3f}"))
    stop = StopOnSignal()
    trainer = GroupTrainer(
        m3, model, arguments(settings, run), groups, held_back, _narrow(settings), beta=settings.beta, distil=settings.distil
    )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise TrainingError(
            "weights sharded over processes (FSDP, DeepSpeed) cannot encode references inside a step: launch with "
            "`--multi_gpu` or `--cpu`, and where the model is too large for that, train an adapter (--rank 16) in bfloat16"
        )
    _quiet(trainer)
    trainer.add_callback(log)
    trainer.add_callback(stop)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    lines = read_log(run)
    trained = None
    if trainer.state.global_step >= settings.steps:
        trained = run / ("adapter" if settings.rank else "model")
        if trainer.args.should_save:
            _export(trainer, m3, settings, trained)
            if learned is not None:
                _keep_selector(learned, trained, settings)
    if trainer.args.should_save:
        with suppress(MissingDependency):  # the log has them
            draw_losses(curves_of(lines), run / "losses.png", title=f"{settings.model}, {settings.memory.budget}")
    seconds = sorted(log.seconds)
    last = {name: losses[-1] for name, _, losses in curves_of(lines) if losses}
    return Result(
        run,
        state.is_main_process,
        trained,
        trainer.state.global_step,
        settings.steps,
        seconds[len(seconds) // 2] if seconds else 0.0,
        last,
    )


def sample_groups(settings: Settings, run: Path, *, device: str | None = None, progress: Progress) -> None:
    """What a run of one process would train on, in its folder; nothing is done where that is there.

    Args:
        settings: of the run.
        run: its folder.
        device: where the model reads; None: the CPU.
        progress: told what is done.
    """
    _make_folder(run)
    with _alone(run):
        if not (run / "held_back.jsonl").exists():
            settings = _with_dtype(settings, device or "cpu")
            _sample(_load(settings, device or "cpu"), settings, run, 1, progress)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Two that trained in one folder would write each other's checkpoints.

    The lock ends with its process, however that ends.
    """
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(f"another process trains in {run}: wait for it, stop it, or give another folder") from None
    try:
        yield
    finally:
        lock.release()


def _load(settings: Settings, device: str) -> Memory3:
    # Frozen weights may be narrow; weights that are trained are float32, and only multiplied in the narrow format.
    if settings.shape:
        model, tokenizer = from_scratch(settings.shape, settings.model, seed=settings.seed)
        return Memory3(model.to(device), tokenizer, settings.memory, name=settings.shape)
    if not settings.rank:
        return Memory3.from_pretrained(settings.model, config=settings.memory, dtype="float32", device=device)
    # An adapter of the model is where LoRA starts (`with_lora`), so it is not merged here.
    base, _ = adapter_of(settings.model)
    # A selector is fitted to the weights as they are, not as they would be rounded; products are narrow all the same.
    dtype = "float32" if is_fitted(settings.memory.selector) else settings.dtype
    return Memory3.from_pretrained(base, config=settings.memory, dtype=dtype, device=device)


def _sample(m3: Memory3, settings: Settings, run: Path, processes: int, tell: Progress) -> None:
    """Read the records, retrieve among their passages and texts, and write down every group of the run.

    Interrupted, embeddings are kept.
    """
    from memory3.bank import Bank

    stored, folder = run / "settings.json", run / _UNFINISHED
    if not stored.exists() or Settings.read(stored) != settings:
        shutil.rmtree(folder, ignore_errors=True)  # what another try was interrupted at
    _write_settings(settings, run)
    tell("reading", 0, 0, "")
    records = training_records(settings.data, settings.held_out, most=settings.records, seed=settings.seed)
    records.questions += cloze_questions(list(dict.fromkeys(records.texts)), settings.cloze, seed=settings.seed)
    with ExitStack() as stack:
        bank = None
        if settings.bank:
            bank = stack.enter_context(_given_bank(settings))
        elif settings.mixture.retrieves:
            documents = list(documents_of(records))
            bank = stack.enter_context(Bank.open(folder / "bank", m3))
            bank.write(
                documents,
                lazy=True,
                progress=lambda at: tell("embedding", at.documents, len(documents), f"{at.references:,} references"),
            )
        maker = GroupMaker(m3, bank, records, settings)
        settings = settings.replace(steps=maker.steps(processes))
        passes = settings.steps * settings.passes * processes
        groups = list(maker.groups(passes, lambda done: tell("sampling", done, passes, "")))
    held_back = [group for some in maker.held_back.values() for group in some]
    if settings.mixture.preference:
        folder.mkdir(exist_ok=True)
        both = len(groups) + len(held_back)
        scored = with_likelihoods(
            m3,
            [*groups, *held_back],
            folder / "likelihoods.jsonl",
            _narrow(settings),
            lambda done: tell("comparing", done, both, "answers as they are before training"),
        )
        groups, held_back = scored[: len(groups)], scored[len(groups) :]
    write_groups(run / "groups.jsonl", groups)
    _write_settings(settings, run)
    write_groups(run / "held_back.jsonl", held_back)  # the last: it says that the others are there
    shutil.rmtree(folder, ignore_errors=True)


def _write_settings(settings: Settings, run: Path) -> None:
    write_atomically(run / "settings.json", json.dumps(settings.to_dict(), indent=2) + "\n")


def _given_bank(settings: Settings) -> Bank:
    """Opened for its texts.

    Tokens of another model's tokenizer would be nonsense, so the bank must be this model's; adapters may differ.
    """
    from memory3.bank import Bank

    bank = Bank.open(settings.bank, None, create=False)
    if adapter_of(bank.manifest.model)[0] != adapter_of(settings.model)[0]:
        written = bank.manifest.model
        bank.close()
        raise ConfigError(
            f"the bank {settings.bank} was written by {written}, not by {settings.model}: train that model, or rebuild the "
            f"bank with `memory3 rebuild --bank {settings.bank} --model {settings.model}`"
        )
    return bank


def _with_dtype(settings: Settings, device: str) -> Settings:
    """Settings that name the number format: one that the device multiplies natively.

    Emulated on a CPU, bfloat16 is many times slower than float32.
    """
    if settings.dtype != "auto":
        return settings
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        native = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return settings.replace(dtype="bfloat16" if native else "float32")


def _narrow(settings: Settings) -> torch.dtype | None:
    """In which matrices are multiplied, where that is not the weights' own."""
    return torch.bfloat16 if settings.dtype == "bfloat16" else None


def _export(trainer: GroupTrainer, m3: Memory3, settings: Settings, folder: Path) -> None:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if settings.rank:
        export_adapter(model, folder, settings.strength)
    else:
        model.save_pretrained(str(folder))
        m3.tokenizer.save_pretrained(str(folder))
    write_about(folder, adapter_of(settings.model)[0] if settings.rank else settings.model, settings.memory)


def _keep_selector(learned: SelectorWeights, trained: Path, settings: Settings) -> None:
    """Beside the weights, for what they have become.

    The model has learned to be read by this choice, so it is served by no other.
    """
    if settings.rank:
        mark = adapter_mark(trained)
    else:
        plain = settings.memory.replace(selector="first")
        mark = Memory3.from_pretrained(str(trained.resolve()), config=plain, dtype="float32", device="cpu").whole_model
    keep_weights(replace(learned, model=mark), trained)


def _quiet(trainer: GroupTrainer) -> None:
    """Ours tells the progress."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _silent(what: str, done: int, total: int, more: str) -> None:
    """A `Progress` that tells nobody."""


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run}: the run's folder cannot be made: {error.strerror}") from error
