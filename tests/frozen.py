"""Freeze what memory3 does with its default model, and compare other code with it.

Imports only public names, so that any code can be frozen. About six minutes of one core each.

    python tests/frozen.py write FOLDER               # with the old code: writes FOLDER/bank and FOLDER/frozen.json
    python tests/frozen.py compare FOLDER             # with the new code: opens that bank, and writes one of its own
    python tests/frozen.py compare FOLDER bank plain  # parts of it: bank, memory, text, none, options, beams, plain

Bytes of rows are those of one kind of processor: write and compare on the same machine, with the same packages.
`test_frozen.py` does the same for tiny models within the suite, on any machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memory3 import Answer, Bank, Document, Memory3, MemoryConfig

#: Floats may differ by so much where an order of sums changed: of a number above 1, as a share of it.
TOLERANCE = 1e-5

TOPICS = ("nonlocal", "class", "function", "specialnames", "import", "lambda", "with", "raise", "slicings")
QUESTIONS = (
    "Which PEP has the specification for the nonlocal statement?",
    "Which PEP added class decorators?",
    "When are default parameter values evaluated?",
    "What does a raise statement without expressions do?",
    "What is a lambda expression?",
    "What does the from clause chain?",
    "Which method is called to create a new instance of a class?",
    "What does __exit__ return?",
    "What happens if the requested module cannot be found?",
    "In which version were positional-only parameters added?",
    "What is the nonlocal statement used for, and how does it differ from global?",
    "What is an inheritance list?",
    "What is a decorator?",
    "Who calls __del__?",
    "Which exception is raised if a name in a from import is not found?",
    "How is the as clause of an import statement used?",
    "What does a with statement do with the context manager?",
    "Which methods must a context manager have?",
    "What does __repr__ compute?",
    "How can an exception be attached as the cause?",
    "Describe the steps by which a class definition is executed.",
    "What is a slice object?",
    "What are annotations of parameters?",
    "What does a star before a parameter mean?",
    "Can a lambda contain statements?",
    "What is the difference between __new__ and __init__?",
    "What does from module import * bind?",
    "What is a relative import?",
    "Which attribute holds the traceback of an exception?",
    "With more than one item, how are the context managers processed?",
)
LONG = {0, 5, 10, 15, 20, 25}  # answered with so many tokens that memories are renewed
LONG_PROMPT = (
    "I am reading the reference manual of the language, and I came to the chapter about the compound statements. There is "
    "a section that tells how functions are defined, with parameters that have default values, parameters that may be "
    "given by position alone, parameters that may be given by keyword alone, annotations, and decorators that stand before "
    "the definition. Then there is a section about classes, which have an inheritance list, decorators of their own, and a "
    "body that is executed in a new execution frame. And I came to the section about the with statement, whose items are "
    "context managers with two methods. Now tell me, please: when are the default values of the parameters evaluated, and "
    "what follows from it for a list or a dictionary that is such a default value?"
)
CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": QUESTIONS[0]}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[1]}],
    [
        {"role": "user", "content": QUESTIONS[4]},
        {"role": "assistant", "content": "A small function without a name."},
        {"role": "user", "content": QUESTIONS[24]},
    ],
    [
        {"role": "system", "content": LONG_PROMPT},
        {"role": "user", "content": QUESTIONS[16]},
        {"role": "assistant", "content": "It calls the methods __enter__ and __exit__ of it."},
        {"role": "user", "content": QUESTIONS[7]},
    ],
)
SCORED = (
    (QUESTIONS[0], "PEP 3104"),
    (QUESTIONS[1], "PEP 3129 - Class Decorators"),
    (QUESTIONS[2], "From left to right when the function definition is executed."),
    (
        QUESTIONS[16],
        "The context expression is evaluated to obtain a context manager. Its __enter__ and __exit__ are loaded for later "
        "use. The __enter__ method is invoked, and if a target was included in the with statement, the return value is "
        "assigned to it. The suite is executed. Then the __exit__ method is invoked; if an exception caused the suite to "
        "be exited, its type, value, and traceback are passed as arguments, otherwise three None.",
    ),
    (LONG_PROMPT, "When the definition is executed, once: all calls share the same list."),
    (QUESTIONS[24], "No"),
)


# ---- what is seen of an answer, and comparing --------------------------------------------------------------------------


def seen(answer: Answer) -> dict[str, Any]:
    """What a user sees of an answer, but for times and bytes."""
    usage = answer.usage
    return {
        "tokens": list(answer.token_ids),
        "citations": [c.reference_id for c in answer.citations],
        "shares": [round(float(c.share), 7) for c in answer.citations],
        "scores": [round(float(c.score), 7) for c in answer.citations],
        "counts": [usage.prompt_tokens, usage.answer_tokens],
        "recalled": [usage.recalls, usage.references],
        "text": digest(repr([answer.text, bool(answer.note), [(c.source, c.start, c.end, c.text) for c in answer.citations]])),
    }


def recalled(recall: Any, rows: int) -> dict[str, Any]:
    """What a user sees of a recall that he entered himself."""
    shares = [recall.shares(row) for row in range(rows)]
    return {
        "citations": [[name for name, _, _ in row] for row in shares],
        "shares": [[round(share, 7) for _, share, _ in row] for row in shares],
        "scores": [[round(score, 7) for _, _, score in row] for row in shares],
        "attention": [round(recall.attention(row), 7) for row in range(rows)],
        "recalled": [recall.statistics.recalls, recall.statistics.references],
        "queries": digest(repr(recall.statistics.queries)),
    }


def digest(data: str | bytes) -> str:
    return hashlib.sha256(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data).hexdigest()[:24]


def values(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of what JSON can hold, each with the path to it. A list's length is a leaf."""
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from values(branch, f"{path}/{name}")
    elif isinstance(tree, list | tuple):
        yield f"{path}/length", len(tree)
        for number, branch in enumerate(tree):
            yield from values(branch, f"{path}/{number}")
    else:
        yield path, tree


@dataclass
class Comparison:
    """What two observations differ in.

    Attributes:
        frozen: values of the first.
        exact: paths where whole numbers, texts or hashes differ, or where one of the two has nothing.
        floats: paths where floats differ by more than `TOLERANCE`.
        largest: largest difference of floats, of a number above 1 as a share of it; and where.
    """

    frozen: int
    exact: list[str]
    floats: list[str]
    largest: tuple[float, str]

    @classmethod
    def of(cls, old: Any, new: Any) -> Comparison:
        before, after = dict(values(old)), dict(values(new))
        exact, floats, largest = [], [], (0.0, "")
        for path in (*before, *(path for path in after if path not in before)):
            a, b = before.get(path), after.get(path)
            if isinstance(a, float) and isinstance(b, float):
                difference = abs(a - b) / max(1.0, abs(a)) if a == a and b == b else float(a != b)
                largest = max(largest, (difference, path))
                if difference > TOLERANCE:
                    floats.append(f"{path}: {a!r} became {b!r}")
            elif a != b:
                exact.append(f"{path}: {a!r} became {b!r}")
        return cls(len(before), exact, floats, largest)


def rows_of(bank: Path) -> dict[str, dict[str, Any]]:
    """Bytes of every row of a bank, as LanceDB reads them; ids lead to hashes."""
    import lancedb

    (folder,) = bank.glob("*.lance")
    table = lancedb.connect(bank).open_table(folder.stem).to_arrow()
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    embeddings = [digest(torch.tensor(row, dtype=torch.float32).numpy().tobytes()) for row in columns.pop("embedding")]
    rows = {}
    for n, id_ in enumerate(columns["reference_id"]):
        row = {name: column[n] for name, column in columns.items()}
        rows[id_] = {
            "codes": digest(row.pop("codes") or b""),
            "bytes": len(columns["codes"][n] or b""),
            "token_ids": digest(repr(row.pop("token_ids"))),
            "text": digest(row.pop("text")),
            "embedding": embeddings[n],
            "rest": digest(repr(sorted(row.items()))),
        }
    return dict(sorted(rows.items()))


# ---- the default model -------------------------------------------------------------------------------------------------


def write_bank(path: Path, m3: Memory3) -> Bank:
    """One document a write: what is encoded together then depends on no clock."""
    from pydoc_data.topics import topics

    bank = Bank.open(path, m3)
    for name in TOPICS:
        kind = "definition" if name in ("class", "function", "lambda") else "other"
        bank.write([Document(name, topics[name][:4000], source=f"topics/{name}", metadata={"kind": kind, "size": len(name)})])
    return bank


def answers(m3: Memory3, bank: Bank, mode: str) -> dict[str, Any]:
    """Questions one at a time and in padded batches, chats, and likelihoods of given answers."""
    out: dict[str, Any] = {}
    for n, question in enumerate(QUESTIONS):
        length = {"max_new_tokens": 80, "min_new_tokens": 80} if n in LONG and mode == "memory" else {"max_new_tokens": 8}
        out[f"{mode} {n}"] = seen(m3.generate(question, bank, mode=mode, **length))
        progress(out)
    batches: list[list[Any]] = [list(QUESTIONS[at : at + 8]) for at in range(0, 30, 8)]
    batches[-1] += [LONG_PROMPT, CHATS[2]]
    for n, batch in enumerate(batches):
        length = {"max_new_tokens": 70 if n in (1, 3) and mode == "memory" else 8}
        out[f"{mode} batch {n}"] = [seen(answer) for answer in m3.generate(batch, bank, mode=mode, **length)]
        progress(out)
    for n, chat in enumerate(CHATS):
        out[f"{mode} chat {n}"] = seen(m3.generate([chat], bank, mode=mode, max_new_tokens=12)[0])
    out[f"{mode} likelihood"] = likelihood(m3.log_likelihood(*zip(*SCORED, strict=True), bank, mode=mode))
    for n in (2, 3, 4):
        out[f"{mode} likelihood {n}"] = likelihood(m3.log_likelihood([SCORED[n][0]], [SCORED[n][1]], bank, mode=mode))
    chats = m3.log_likelihood(CHATS, [SCORED[n][1] for n in (0, 1, 5, 3)], bank, mode=mode)
    out[f"{mode} likelihood of chats"] = likelihood(chats)
    return out


def beams(m3: Memory3, bank: Bank) -> dict[str, Any]:
    """Beams that renew their memories, and several answers of a batch."""
    out: dict[str, Any] = {"beams": seen(m3.generate(QUESTIONS[1], bank, max_new_tokens=70, min_new_tokens=70, num_beams=5))}
    several = m3.generate(list(QUESTIONS[2:4]), bank, max_new_tokens=10, num_beams=3, num_return_sequences=2)
    out["beams, several"] = [seen(answer) for answer in several]
    progress(out)
    return out


def options(m3: Memory3, bank: Bank) -> dict[str, Any]:
    """What may be said of the retrieval."""
    pinned = ["function#1", "class#0"]
    each = [["with#0"], [], ["nonlocal#0", "import#2", "raise#1"]]
    out: dict[str, Any] = {}
    for mode in ("memory", "text"):
        said: dict[str, dict[str, Any]] = {
            "k=0": {"k": 0},
            "k=1": {"k": 1},
            "k=3": {"k": 3},
            "k=5 gap=0.05": {"k": 5, "gap": 0.05},
            "gap=0": {"gap": 0.0},
            "gap=0.5": {"gap": 0.5},
            "where": {"where": {"kind": "definition"}},
            "where any": {"where": {"size": [4, 5, 6], "kind": "other"}, "k": 4},
            "where nothing": {"where": {"kind": "poem"}},
            "pinned": {"references": pinned},
        }
        for name, more in said.items():
            out[f"{mode} {name}"] = seen(m3.generate(QUESTIONS[2], bank, mode=mode, max_new_tokens=10, **more))
        answers = m3.generate(list(QUESTIONS[:3]), bank, mode=mode, max_new_tokens=10, references=each)
        out[f"{mode} pinned each"] = [seen(answer) for answer in answers]
        questions, given = zip(*SCORED[1:4], strict=True)
        out[f"{mode} pinned likelihood"] = likelihood(m3.log_likelihood(questions, given, bank, mode=mode, references=each))
        out[f"{mode} k likelihood"] = likelihood(m3.log_likelihood(questions, given, bank, mode=mode, k=3, gap=0.2))
        progress(out)
    many = m3.generate(QUESTIONS[0], bank, max_new_tokens=70, min_new_tokens=70, references=pinned)
    return out | {"memory pinned, renewed": seen(many)}


def plain(m3: Memory3, bank: Bank) -> dict[str, Any]:
    """Plain transformers inside a recall."""
    rows = [ids(m3, [{"role": "user", "content": text}]) for text in (QUESTIONS[0], QUESTIONS[25], LONG_PROMPT)]
    tokens, mask = padded(m3, rows)
    model: Any = m3.model
    out: dict[str, Any] = {}
    with m3.recall(bank) as recall, torch.inference_mode():
        made = model.generate(tokens, attention_mask=mask, max_new_tokens=68, min_new_tokens=68, do_sample=False)
        out["plain"] = {"tokens": made[:, tokens.shape[1] :].tolist()} | recalled(recall, len(rows))
    progress(out)
    with m3.recall(bank, k=2) as recall, torch.inference_mode():  # a later turn of the same chat
        settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
        first = model.generate(tokens[:1], attention_mask=mask[:1], **settings)
        begun = first.sequences
        turn = torch.tensor([[*begun[0].tolist(), *ids(m3, CHATS[0])]])
        second = model.generate(turn, attention_mask=mask_of(turn, mask), past_key_values=first.past_key_values, **settings)
        made = [begun[0, tokens.shape[1] :].tolist(), second.sequences[0, turn.shape[1] :].tolist()]
        out["later turn"] = {"tokens": made} | recalled(recall, 1)
    for passes in (tokens.shape[1], 37, 1):
        if passes == 1:  # the short ones
            rows = rows[:2]
            tokens, mask = padded(m3, rows)
        with m3.recall(bank, prompt=rows) as recall, torch.inference_mode():
            cache, logs, chosen = None, [], []
            for at in range(0, tokens.shape[1], passes):
                end = min(at + passes, tokens.shape[1])
                got = model(tokens[:, at:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
                cache = got.past_key_values
                logs.append(got.logits.float().log_softmax(-1))
            sums = scored(torch.cat(logs, 1), tokens, mask)
            whole, step = mask, got.logits[:, -1].argmax(-1)
            for _ in range(70 if passes == 37 else 4):
                chosen.append(step.tolist())
                whole = torch.cat([whole, torch.ones_like(whole[:, :1])], 1)
                step = model(step[:, None], attention_mask=whole, past_key_values=cache).logits[:, -1].argmax(-1)
            out[f"announced, {passes}"] = {"tokens": chosen, "likelihood": sums} | recalled(recall, len(rows))
        progress(out)
    by_chunk = [[["nonlocal#0"]], [["class#1", "class#0"]]]
    with m3.recall(bank, chunk_references=by_chunk, prompt=rows) as recall, torch.inference_mode():
        logits = model(tokens, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        out["by chunk"] = {"likelihood": scored(logits, tokens, mask)} | recalled(recall, 2)
    return out


def ids(m3: Memory3, messages: Sequence[Mapping[str, str]]) -> list[int]:
    text = m3.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(m3.tokenizer(text, add_special_tokens=False)["input_ids"])


def padded(m3: Memory3, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width, pad = max(map(len, rows)), m3.tokenizer.pad_token_id
    tokens = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens), torch.tensor(mask)


def mask_of(turn: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mask of a longer text with the same padding in front."""
    return torch.cat([mask[:1], mask.new_ones(1, turn.shape[1] - mask.shape[1])], 1)


def scored(logs: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """Log-likelihood of every row's own tokens, without padding."""
    picked = logs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0] * (mask[:, :-1] * mask[:, 1:])
    return [round(float(row), 6) for row in picked.sum(-1)]


def likelihood(found: Sequence[tuple[float, int]]) -> list[list[Any]]:
    return [[round(nats, 6), count] for nats, count in found]


def fingerprints(m3: Memory3) -> dict[str, str]:
    """Of the default model and of tiny ones; a bank is refused where they change."""
    from tiny import FAMILIES, tiny_chat_tokenizer, tiny_model, tiny_tokenizer

    out = {"default": m3.fingerprint}
    for family in FAMILIES:
        for name, tokenizer in (("plain", tiny_tokenizer()), ("chat", tiny_chat_tokenizer())):
            for preset in ("default", "paper", "full"):
                tiny = Memory3(tiny_model(family), tokenizer, MemoryConfig.preset(preset), name="tiny")
                out[f"{family} {name} {preset}"] = tiny.fingerprint
    return out


# ---- the command -------------------------------------------------------------------------------------------------------


def case(line: str) -> str:
    """The first two parts of a path."""
    return " / ".join(line.split(": ")[0].split("/")[1:3])


def field(line: str) -> str:
    """The last part of a path that is a name."""
    return next(part for part in reversed(line.split(": ")[0].split("/")) if not part.isdigit() and part != "length")


def progress(out: Mapping[str, Any]) -> None:
    print(f"\r{next(reversed(out)):40s}", end="", file=sys.stderr, flush=True)


#: Parts of what is frozen, beside the bank itself.
PARTS: dict[str, Callable[[Memory3, Bank], dict[str, Any]]] = {
    "memory": partial(answers, mode="memory"),
    "text": partial(answers, mode="text"),
    "none": partial(answers, mode="none"),
    "options": options,
    "beams": beams,
    "plain": plain,
}


def main(command: str, folder: Path, parts: Sequence[str]) -> int:
    torch.set_num_threads(1)
    started = time.perf_counter()
    m3 = Memory3.from_pretrained()
    file = folder / "frozen.json"
    if command == "write" and folder.exists():
        sys.exit(f"{folder} exists: what was frozen stays as it is; give another folder, or remove this one")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        new = folder / "bank" if command == "write" else Path(scratch, "new")
        if "bank" in parts:
            write_bank(new, m3).close()
            found["bank"] = {"written rows": rows_of(new), "fingerprints": fingerprints(m3)}
        opened = Path(scratch, "opened")
        shutil.copytree(folder / "bank", opened)  # a bank notes its recalls: the frozen one stays as it is
        with Bank.open(opened, m3, create=False) as bank:
            found |= {name: observe(m3, bank) for name, observe in PARTS.items() if name in parts}
        if "bank" in parts:
            found["bank"]["rows after reading"] = rows_of(opened)
    found = json.loads(json.dumps(found))
    spent = f"{time.perf_counter() - started:.0f} s"
    print(file=sys.stderr)
    if command == "write":
        file.write_text(json.dumps(found, indent=0))
        print(f"{sum(1 for _ in values(found)):,} values frozen in {file}, {spent}")
        return 0
    frozen = json.loads(file.read_text())
    result = Comparison.of({name: frozen[name] for name in found}, found)
    for group, paths in (("differ", result.exact), ("differ by more than rounding", result.floats)):
        for path in paths[:20]:
            print(f"  {path:.300}")
        for part in (case, field):
            for kind, count in Counter(map(part, paths)).most_common(20):
                print(f"  {count:6,} {group}: {part.__name__} {kind}")
    print(
        f"{result.frozen:,} values frozen: {len(result.exact):,} differ, {len(result.floats):,} floats differ by more than "
        f"{TOLERANCE}; largest difference of floats {result.largest[0]:.2e} {result.largest[1]}; {spent}"
    )
    return 1 if result.exact or result.floats else 0


if __name__ == "__main__":
    chosen = sys.argv[3:] or ["bank", *PARTS]
    whole = sys.argv[1:2] == ["compare"] or (sys.argv[1:2] == ["write"] and len(sys.argv) == 3)
    if len(sys.argv) < 3 or not whole or not {*chosen} <= {"bank", *PARTS}:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), chosen))
