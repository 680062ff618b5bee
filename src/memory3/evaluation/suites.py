"""The suites: which tasks, which modes, from which knowledge base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memory3.errors import ConfigError
from memory3.evaluation.judge import Judge
from memory3.evaluation.mt_bench import MtBenchTask
from memory3.evaluation.qa import AbstainTask, QaTask
from memory3.evaluation.task import Task

__all__ = ["SUITES", "Options", "Suite", "load_suite"]


@dataclass(frozen=True)
class Options:
    """What suites are loaded with.

    Attributes:
        data: the data folder.
        split: ``"dev"`` or ``"test"``, where a task has both.
        shots: few-shot examples; None: as the leaderboards have it, where there are examples.
        seed: that chooses the examples.
        max_new_tokens: length of generated answers; None: as the task has it.
        judge: name of the model that grades, for mt-bench.
        hub: whether tasks whose questions are on the model hub take part.
    """

    data: Path
    split: str = "test"
    shots: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    judge: str = ""
    hub: bool = False


@dataclass(frozen=True)
class Suite:
    """A set of tasks run with the same modes.

    Attributes:
        about: one line for help texts.
        modes: unless others are asked for.
        load: its tasks.
    """

    about: str
    modes: tuple[str, ...]
    load: Callable[[Options], list[Task]]


def _qa(options: Options) -> list[Task]:
    return [
        QaTask.load(options.data / "wiki_qa", options.split, knowledge="wiki_qa", max_new_tokens=options.max_new_tokens or 32)
    ]


def _abstain(options: Options) -> list[Task]:
    return [
        AbstainTask.load(
            options.data / "wiki_qa", options.split, knowledge="wiki_qa", max_new_tokens=options.max_new_tokens or 32
        )
    ]


def _stock(options: Options, name: str, *, style: str = "plain", knowledge: str = "wiki_qa", notes: str = "") -> Task:
    from memory3.evaluation.benchmark import BenchmarkTask
    from memory3.evaluation.stock import STOCK, harness_task

    source = STOCK[name]
    task, digest = harness_task(name, options.data)
    shots = source.shots if options.shots is None else options.shots
    if not task.has_training_docs():
        shots = 0
    shown = "No examples at hand: 0 shots. " if source.shots or options.shots else ""
    notes = (shown if not task.has_training_docs() else "") + notes
    return BenchmarkTask.of(
        task,
        data=digest,
        query=source.query,
        knowledge=knowledge,
        style=style,
        shots=shots,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        notes=notes,
    )


def _own(options: Options, name: str, *, knowledge: str, guard_of: str = "reference", notes: str = "") -> Task:
    from memory3.evaluation.benchmark import BenchmarkTask
    from memory3.evaluation.stock import OWN, own_task

    task, digest = own_task(name, options.data)
    own = OWN[name]
    return BenchmarkTask.of(
        task, data=digest, query=own.query, knowledge=knowledge, style="chat", gold=own.gold, guard_of=guard_of, notes=notes
    )


def _hub(options: Options, name: str, shots: int) -> list[Task]:
    """A task whose questions are fetched from the model hub, as lm-evaluation-harness has it; a group is all its tasks."""
    from memory3.evaluation.benchmark import BenchmarkTask
    from memory3.evaluation.stock import hub_tasks

    shots = shots if options.shots is None else options.shots
    return [
        BenchmarkTask.of(
            task, data=f"hub:{task.task_name}", query="", knowledge="wiki_qa", style="plain", shots=shots, seed=options.seed
        )
        for task in hub_tasks(name)
    ]


_ELSEWHERE = "The knowledge base was not made for this task: memories are to do no harm here."


def _general(options: Options) -> list[Task]:
    tasks = [
        _stock(options, name, notes=_ELSEWHERE) for name in ("arc_challenge", "arc_easy", "openbookqa", "gsm8k", "winogrande")
    ]
    for name, shots in (("hellaswag", 10), ("mmlu", 5), ("ceval-valid", 5), ("cmmlu", 5)) if options.hub else ():
        tasks += _hub(options, name, shots)
    return tasks


def _retro(options: Options) -> list[Task]:
    tasks = [
        _stock(options, name, notes=_ELSEWHERE) for name in ("boolq", "lambada_openai", "piqa", "winogrande", "social_iqa")
    ]
    for name in ("hellaswag", "race", "anli_r2", "wic") if options.hub else ():
        tasks += _hub(options, name, 0)
    return tasks


def _hallucination(options: Options) -> list[Task]:
    tasks = [
        _stock(options, "truthfulqa_mc1", notes=_ELSEWHERE),
        _stock(options, "truthfulqa_mc2", notes=_ELSEWHERE),
        _own(
            options,
            "halueval_qa",
            knowledge="halueval",
            notes="The knowledge base holds the passages that the questions were made from.",
        ),
    ]
    if any((options.data / "bench").glob("HalluQA_mc.json*")):
        tasks.append(_own(options, "halluqa", knowledge="wiki_qa", notes=_ELSEWHERE + " Questions are Chinese."))
    return tasks + (_hub(options, "halueval_dialogue", 0) if options.hub else [])


def _professional(options: Options) -> list[Task]:
    return [
        _own(
            options,
            "anatomy_exercises",
            knowledge="anatomy",
            guard_of="either",
            notes="The textbook quotes some of its own exercises: the guard looks for the question in the reference, too.",
        ),
        _own(options, "housing_law", knowledge="housing"),
        _own(options, "pubmedqa_open", knowledge="pubmed"),
    ]


def _mt_bench(options: Options) -> list[Task]:
    if not options.judge:
        raise ConfigError("mt-bench needs a judge: give --judge MODEL, and set OPENAI_BASE_URL and OPENAI_API_KEY")
    judge = Judge.from_environment(options.judge)
    return [MtBenchTask.load(options.data, judge, knowledge="wiki_qa", max_new_tokens=options.max_new_tokens or 512)]


_ALL = ("memory", "text", "none", "random", "other")

SUITES: dict[str, Suite] = {
    "qa": Suite("open-book questions: exact match, F1, answer NLL, retrieval recall", _ALL, _qa),
    "professional": Suite(
        "anatomy, housing law, medicine, each from its knowledge base",
        ("memory", "text:3", "text", "text:7", "none", "random", "other"),
        _professional,
    ),
    "hallucination": Suite("TruthfulQA MC1 and MC2, HaluEval, HalluQA where its file is", _ALL, _hallucination),
    "abstain": Suite("does the model show that the answer is not in the bank?", ("memory", "absent"), _abstain),
    "mt-bench": Suite(
        "80 conversations graded by a judge (OpenAI-compatible)", ("memory", "text", "none", "random"), _mt_bench
    ),
    "general": Suite("ARC, OpenBookQA, GSM8k, Winogrande; with a hub HellaSwag, MMLU, C-Eval, CMMLU", _ALL, _general),
    "retro": Suite("BoolQ, LAMBADA, PIQA, Winogrande; with a hub HellaSwag, RACE, ANLI-R2, WiC", _ALL, _retro),
}


def load_suite(name: str, options: Options, tasks: Sequence[str] = ()) -> list[Task]:
    """Tasks of a suite, or those of them that are named.

    Args:
        name: of `SUITES`.
        options: data folder, split and the like.
        tasks: names of those wanted; none: all.

    Raises:
        ConfigError: no suite or task of this name.
        InputError: the data folder lacks a file.
        MissingDependency: the suite needs lm_eval, which is not installed.
    """
    if name not in SUITES:
        raise ConfigError(f"suite {name!r} is unknown: use one of {', '.join(SUITES)}")
    found = SUITES[name].load(options)
    known = {task.name: task for task in found}
    missing = [task for task in tasks if task not in known]
    if missing:
        raise ConfigError(f"suite {name} has no task {', '.join(missing)}: it has {', '.join(known)}")
    return [known[task] for task in tasks] if tasks else found
