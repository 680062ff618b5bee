"""Training records: questions on passages, prompts, and texts, from JSON lines (``.jsonl``, ``.jsonl.gz``).

    {"passage": ..., "question": ..., "answer": ...}     a question
    {"prompt": ..., "answer": ...}                       a prompt; where a long paragraph of it is a passage, a question too
    {"prompt": ..., "chosen": ..., "rejected": ...}      a prompt with two answers, the first of which is better
    {"text": ...}                                        a text

A prompt may also be written ``instruction`` and ``input``, its answer ``output``; or as ``messages`` ({"role", "content"}) or
``conversations`` ({"from", "value"}), whose last is the answer where no other field is.

Other fields are ignored. What must never be trained on is named as held out: a record that shares a text with it is refused.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory3.errors import InputError, ReadError
from memory3.files import json_lines, open_unzipped

__all__ = ["Preference", "Prompt", "Question", "Records", "training_records"]

#: A user's text, or the messages of a conversation that ends with the user's.
Prompt = str | Sequence[Mapping[str, str]]

#: Characters below which two texts may be equal by chance.
_TELLING = 24
#: A prompt's longest paragraph is its passage when it is at least this long, and this share of the prompt.
_PASSAGE, _SHARE = 200, 0.5
#: A line of a prompt that says which its question is.
_ASKED = re.compile(r"^\s*question:\s*(.*\S)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """A question that a passage answers."""

    passage: str
    question: str
    answer: str


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, of which one is better."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass
class Records:
    """What there is to train on.

    Attributes:
        questions: on passages.
        prompts: prompt and answer, nothing to be remembered.
        preferences: prompts with two answers.
        texts: to be continued.
    """

    questions: list[Question] = field(default_factory=list)
    prompts: list[tuple[Prompt, str]] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def training_records(
    paths: Sequence[str | Path], held_out: Sequence[str | Path] = (), *, most: int = 0, seed: int = 0
) -> Records:
    """The records of the files, in order.

    Args:
        paths: files.
        most: records of each file at most, sampled by ``seed``, all questions on a passage together; 0: all.
        held_out: files or folders of what must not be trained on.

    Raises:
        ReadError: a file that is missing, damaged or not JSON lines; carries the path.
        InputError: a record that is held out, or of no known kind; no records at all.
    """
    forbidden = {
        fold(text) for path in held_out for file in _files(path) for _, record in _lines(file) for text in _texts(record)
    }
    records = Records()
    for path in paths:
        lines = list(_lines(Path(path)))
        if most and most < len(lines):
            lines = _sampled(lines, most, seed)
        for number, record in lines:
            # An answer alone gives nothing away: the name of a film answers many questions.
            asked = {name: value for name, value in record.items() if name != "answer"} if forbidden else {}
            shared = next((text for text in _texts(asked) if fold(text) in forbidden), None)
            if shared is not None:
                raise InputError(f"{path}, record {number}: {shared[:80]!r} is held out and must not be trained on")
            _add(records, record, f"{path}, record {number}")
    if not (records.questions or records.prompts or records.preferences or records.texts):
        raise InputError(
            f"there is nothing to train on in {', '.join(map(str, paths)) or 'no files'}: give files with records"
        )
    return records


def _sampled(lines: list[tuple[int, dict[str, Any]]], most: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """Questions on one passage share its references in a training step, so whole passages are sampled."""
    by_passage: dict[Any, list[int]] = {}
    for at, (_, record) in enumerate(lines):
        by_passage.setdefault(record.get("passage") or at, []).append(at)
    passages = list(by_passage.values())
    random.Random(seed).shuffle(passages)
    chosen = [at for passage in passages for at in passage][:most]
    return [lines[at] for at in sorted(chosen)]


def fold(text: str) -> str:
    """The text without differences of case and spacing."""
    return " ".join(text.lower().split())


#: What the authors of a conversation are called in the formats of other libraries.
_ROLES = {"human": "user", "gpt": "assistant"}


def _add(records: Records, record: dict[str, Any], where: str) -> None:
    def text(*names: str) -> str:
        for name in names:
            value = record.get(name)
            if isinstance(value, Mapping):  # a message
                value = value.get("content", value.get("value"))
            if isinstance(value, str) and value.strip():
                return value.strip()
        return ""

    messages = _messages(record.get("messages") or record.get("conversations") or ())
    answer = text("answer", "output")
    if messages and messages[-1]["role"] == "assistant":
        *messages, last = messages
        answer = answer or last["content"]
    prompt: Prompt = "\n\n".join(filter(None, (text("prompt", "instruction"), text("input"))))
    if messages and messages[-1]["role"] == "user":
        prompt = messages[0]["content"] if len(messages) == 1 else messages
    chosen, rejected = text("chosen"), text("rejected")
    if text("passage") and text("question") and answer:
        records.questions.append(Question(text("passage"), text("question"), answer))
    elif prompt and chosen and rejected:
        records.preferences.append(Preference(prompt, chosen, rejected))
    elif prompt and answer:
        records.prompts.append((prompt, answer))
        question = _apart(prompt, answer) if isinstance(prompt, str) else None
        if question is not None:
            records.questions.append(question)
    elif text("text"):
        records.texts.append(text("text"))
    else:
        raise InputError(
            f"{where} has fields {', '.join(record) or 'none'}: needed are passage, question, answer; prompt, answer; "
            "prompt, chosen, rejected; or text, none empty"
        )


def _messages(given: Any) -> list[dict[str, str]]:
    """Role and content of each; none where something else is given."""
    messages = []
    for message in given if isinstance(given, list) else ():
        if not isinstance(message, Mapping):
            return []
        author, content = (message.get("role", message.get("from")), message.get("content", message.get("value")))
        if not (isinstance(author, str) and isinstance(content, str)):
            return []
        messages.append({"role": _ROLES.get(author, author), "content": content.strip()})
    return messages


def _apart(prompt: str, answer: str) -> Question | None:
    """Passage and question of a prompt that holds both, where its longest paragraph is plainly the passage."""
    parts = prompt.split("\n")
    longest = max(range(len(parts)), key=lambda n: len(parts[n]))
    passage = parts[longest]
    rest = "\n".join(part for n, part in enumerate(parts) if n != longest and part.strip(" \"'-"))
    if len(passage) < max(_PASSAGE, _SHARE * len(prompt)) or len(rest) < 8:
        return None
    asked = _ASKED.search(rest)
    question = asked[1].strip('"“” ') if asked else ""
    return Question(passage.strip(), question or rest.strip(), answer)


def _texts(record: dict[str, Any]) -> Iterator[str]:
    """Its texts, those of messages too."""
    for value in record.values():
        if isinstance(value, Mapping):
            yield from _texts(dict(value))
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, Mapping):
                yield from _texts(dict(text))
            elif isinstance(text, str) and len(text) >= _TELLING:
                yield text


def _files(path: str | Path) -> list[Path]:
    path = Path(path)
    return sorted(path.rglob("*.jsonl*")) if path.is_dir() else [path]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open_unzipped(path) as file:
            data = file.read()
        for number, record in json_lines(data):
            if not isinstance(record, dict):
                raise ReadError(path, f"line {number} is not a JSON object")
            yield number, record
    except OSError as error:
        raise ReadError(path, error.strerror or str(error)) from error
    except (ValueError, EOFError, RecursionError, zlib.error) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(path, f"is not made of JSON lines ({error})") from error
