"""Tasks of lm-evaluation-harness as tasks of ours.

The harness makes prompts and grades; ours are the modes, the controls and the folder of results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from memory3.bank import Bank
from memory3.evaluation.generation import generate_rows
from memory3.evaluation.modes import Mode
from memory3.evaluation.task import Item, Metric, Task
from memory3.llm import Memory3
from memory3.prompt import PromptRow

__all__ = ["BenchmarkTask", "encode_pair"]

_LABELS = {
    "acc": "Accuracy",
    "acc_norm": "Accuracy, length-normalised",
    "perplexity": "Perplexity",
    "exact_match": "Exact match",
    "word_perplexity": "Perplexity per word",
}


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it, cut where the context's own tokens end.

    Spaces at its end go with what follows: the rule of lm_eval.

    Args:
        tokenizer: of the model.
        context: what stands before.
        continuation: what is scored.
    """
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    first = list(tokenizer(bare)["input_ids"]) if bare else []
    if not first:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [start], list(tokenizer(continuation, add_special_tokens=False)["input_ids"])
    return first, list(tokenizer(bare + continuation)["input_ids"])[len(first) :]


@dataclass
class BenchmarkTask(Task):
    """A task of the harness.

    Attributes:
        task: lm_eval's object.
        style: how its contexts are put to the model: ``"plain"``, the field's standard, or ``"chat"``.
        shots: examples in front of each question.
        max_new_tokens: of a generated answer; None: as the task says.
    """

    task: Any = None
    style: str = "plain"
    shots: int = 0
    max_new_tokens: int | None = None

    @classmethod
    def of(
        cls,
        task: Any,
        *,
        data: str,
        query: str,
        knowledge: str,
        style: str,
        shots: int = 0,
        seed: int = 0,
        gold: Any = None,
        guard_of: str = "reference",
        max_new_tokens: int | None = None,
        notes: str = "",
    ) -> BenchmarkTask:
        """Wrap lm_eval's task.

        Args:
            task: lm_eval's object.
            data: identifies its documents.
            query: field of a document that references are looked up by; empty: the task's own context.
            knowledge: what the bank is said to hold.
            style: one of `memory3.prompt.STYLES`.
            shots: examples in front of each question.
            seed: of the examples.
            gold: tells the ids of the right documents of one.
            guard_of: direction of the contamination guard.
            max_new_tokens: of a generated answer; None: as the task says.
            notes: for the report.
        """
        items = []
        for number, doc in enumerate(task.eval_docs):
            asked = doc[query] if query else task.doc_to_text(doc)
            items.append(Item(str(number), str(asked) or "?", tuple(gold(doc)) if gold else (), doc))
        name = task.task_name
        max_new_tokens = max_new_tokens if task.OUTPUT_TYPE == "generate_until" else None
        settings: dict[str, Any] = {
            "data": data,
            "version": str(task.VERSION),
            "style": style,
            "shots": shots,
            "shots_seed": seed if shots else 0,
        }
        title = (
            f"{name}, {shots} shots, {'as a chat' if style == 'chat' else 'as plain text'}, scored by lm-evaluation-harness"
        )
        known = task.aggregation()
        metrics = {}
        for key, (metric, _) in _metric_names(task).items():
            aggregate = known[metric]
            is_mean = getattr(aggregate, "__name__", "") == "mean"
            metrics[key] = Metric(
                _LABELS.get(metric, metric) + (f" ({key.partition(',')[2]})" if "," in key else ""),
                bool(task.higher_is_better().get(metric, True)),
                percent=is_mean,
                aggregate=None if is_mean else aggregate,
            )
        return cls(
            name,
            title,
            knowledge,
            items,
            metrics,
            settings,
            guard_of,
            notes,
            task=task,
            style=style,
            shots=shots,
            max_new_tokens=max_new_tokens,
        )

    def answer(
        self, m3: Memory3, bank: Bank | None, mode: Mode, items: Sequence[Item], references: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Likelihoods of the choices, or a generated text, and the harness's figures for each.

        Args:
            m3: answers.
            bank: where memories and texts are; None: mode none alone.
            mode: what is read.
            items: what is asked.
            references: for each item the ids of what it reads.

        Returns:
            a row of JSON values per item, ``metrics`` among them.
        """
        asked = [self._requests(item) for item in items]
        if self.task.OUTPUT_TYPE == "generate_until":
            found = self._generated(m3, bank, mode, asked, references)
        else:
            found = self._scored(m3, bank, mode, asked, references)
        return [self._graded(item, some, said) for item, some, said in zip(items, asked, found, strict=True)]

    def holders(self, bank: Bank, item: Item) -> list[str]:
        """References of the right documents.

        Args:
            bank: that is asked for references.
            item: of this task.
        """
        if not item.gold:
            return []
        if not hasattr(self, "_counts"):
            self._counts = {entry.id: entry.references for entry in bank.documents()}
        return [f"{doc}#{n}" for doc in item.gold for n in range(self._counts.get(doc, 0))]

    def _requests(self, item: Item) -> list[Any]:
        # Seeded by the item: the same examples stand in front of it whatever else is asked.
        if self.shots:
            self.task.set_fewshot_seed(Random(f"{self.settings['shots_seed']}:{item.id}").randrange(2**31))
        context = self.task.fewshot_context(item.data, num_fewshot=self.shots)
        made = self.task.construct_requests(doc=item.data, ctx=context, metadata=(self.name, int(item.id), 1))
        return made if isinstance(made, list) else [made]

    def _pair(self, m3: Memory3, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.style == "plain":
            return encode_pair(m3.tokenizer, context, continuation)
        return m3.prompts.ids(context), m3.prompts.ids(continuation.strip())  # the assistant's words open its turn

    def _scored(
        self, m3: Memory3, bank: Bank | None, mode: Mode, asked: Sequence[Sequence[Any]], references: Sequence[Sequence[str]]
    ) -> list[list[Any]]:
        """Choices behind the same context share a row."""
        rows: list[PromptRow] = []
        continuations: list[list[list[int]]] = []
        places: list[list[tuple[int, int]]] = []
        for requests, names in zip(asked, references, strict=True):
            by_context: dict[tuple[int, ...], int] = {}
            mine = []
            for request in requests:
                context, continuation = self._pair(m3, *request.args)
                if tuple(context) not in by_context:
                    by_context[tuple(context)] = len(rows)
                    rows.append(m3.prompts.row(context, mode.read, names, bank, style=self.style, after=256))
                    continuations.append([])
                row = by_context[tuple(context)]
                mine.append((row, len(continuations[row])))
                continuations[row].append(continuation)
            places.append(mine)
        found = m3.scorer.score(rows, continuations, bank)
        return [[(found[row][n].total, found[row][n].greedy) for row, n in mine] for mine in places]

    def _generated(
        self, m3: Memory3, bank: Bank | None, mode: Mode, asked: Sequence[Sequence[Any]], references: Sequence[Sequence[str]]
    ) -> list[list[Any]]:
        options = dict(asked[0][0].args[1])
        length = self.max_new_tokens or int(options.get("max_gen_toks", 256))
        until = options.get("until", [])
        contexts = [requests[0].args[0] for requests in asked]
        ids = [m3.prompts.ids(text) if self.style == "chat" else list(m3.tokenizer(text)["input_ids"]) for text in contexts]
        rows = [
            m3.prompts.row(context, mode.read, names, bank, style=self.style, after=length)
            for context, names in zip(ids, references, strict=True)
        ]
        stop = [until] if isinstance(until, str) else list(until)
        return [[answer.text] for answer in generate_rows(m3, bank, rows, max_new_tokens=length, stop=stop)]

    def _graded(self, item: Item, requests: Sequence[Any], said: Sequence[Any]) -> dict[str, Any]:
        for request, response in zip(requests, said, strict=True):
            request.resps, request.filtered_resps = [response], {}
        self.task._instances = list(requests)
        self.task.apply_filters()
        figures: dict[str, Any] = {}
        for key, (metric, kept) in _metric_names(self.task).items():
            results = self.task.process_results(item.data, [request.filtered_resps[kept] for request in requests])
            if metric in results:
                figures[key] = _plain(results[metric])
        outputs = [_plain(list(response)) if isinstance(response, tuple) else response for response in said]
        return {"metrics": figures, "outputs": outputs}


def _metric_names(task: Any) -> dict[str, tuple[str, str]]:
    """Our names of a task's figures: (metric, filter). The filter is named where there are several."""
    filters = [ensemble.name for ensemble in task._filters]
    return {
        metric if len(filters) == 1 else f"{metric},{kept}": (metric, kept)
        for metric in task.aggregation()
        for kept in filters
    }


def _plain(value: Any) -> Any:
    """As JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, bool) else value
