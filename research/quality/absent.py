"""Not in the bank: how well scores tell questions whose answer a bank holds from those whose answer it does not.

    python -m research.quality.absent ask --data DIR                        # searches, cosines, words: minutes
    python -m research.quality.absent read --data DIR --model M --label L   # what a model makes of each ask: hours
    python -m research.quality.absent report --labels L,... --out FILE      # AUROC of each score, and of fitted ones
    python -m research.quality.absent weights --out FILE                    # what `memory3.presence` uses, fitted on dev
    python -m research.quality.absent shipped --labels L,...                # that, on references that other models split

``ask --model M --label L`` searches references as that model's tokenizer splits them. ``ask`` and ``read`` write a line of
JSON an ask to ``--cache`` and go on where they were stopped, dev and test by turns. Nothing is fitted but the weights of a
logistic regression, on dev; ``report`` gives test.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from memory3.bank.embedder import Embedder
from memory3.files import write_atomically
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_EMBEDDER
from research.quality.absent_asks import SETS, KnowledgeBase, asks
from research.quality.absent_read import Reader
from research.quality.absent_report import presence, report, shipped
from research.quality.absent_words import EMBEDDED, Vectors, Words, cosines, tokens_found

#: Of cosines, within which references are read: the default of `MemoryConfig`.
GAP = 0.1


def lines(path: Path) -> dict[str, dict[str, Any]]:
    """What a file has, by ask; a line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except ValueError:
            continue
    return found


def add(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Behind what the file has."""
    with path.open("a") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def ask(given: argparse.Namespace) -> None:
    """Search every ask, and score what was found by cosines and words."""
    path = given.cache / ("words.jsonl" if not given.model else f"words-{given.label}.jsonl")
    m3, embedder = _model(given), Embedder.load(DEFAULT_EMBEDDER)
    for name in given.sets:
        done, started = lines(path), time.perf_counter()
        some = [one for one in asks(given.data, name, given.dev, given.test) if one.key not in done]
        base = KnowledgeBase(given.data, name, m3, embedder, given.cache / given.label if given.model else given.cache)
        words, vectors = Words(base), Vectors(embedder)
        for row in done.values():  # words cost nothing, and may be counted otherwise than when the row was written
            if row["set"] == name:
                kept = {score: row["scores"][score] for score in EMBEDDED if score in row["scores"]}
                row["scores"] = cosines(row["hits"], GAP) | words.found(row["question"], row["hits"], GAP) | kept
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done.values()))
        asked = embedder.encode([one.question for one in some] or [""])
        for n, (one, hits) in enumerate(zip(some, base.search(some, asked[: len(some)]), strict=True)):
            read = [base.references[base.by_id[i]] for i, score in hits[:5] if score >= hits[0][1] - GAP]
            scores = cosines(hits, GAP) | words.found(one.question, hits, GAP)
            if not given.model:
                scores |= tokens_found(vectors, embedder, one.question, read, asked[n])
            row = {"key": one.key, "set": name, "split": one.split, "kind": one.kind, "id": one.id, "question": one.question}
            add(path, [{**row, "hits": hits, "scores": scores}])
        say(f"{name}: {len(some)} asks in {time.perf_counter() - started:.0f} s")


def _model(given: argparse.Namespace) -> Memory3:
    options: dict[str, Any] = {"dtype": given.dtype} if given.dtype else {}
    options |= {"config": given.preset} if given.preset else {}
    return Memory3.from_pretrained(given.model, **options) if given.model else Memory3.from_pretrained()


def read(given: argparse.Namespace) -> None:
    """Let a model read and answer every ask."""
    path = given.cache / f"{given.label}.jsonl"
    m3 = _model(given)
    default = Memory3.from_pretrained() if given.model else m3
    embedder = Embedder.load(DEFAULT_EMBEDDER)
    found, done = lines(given.cache / "words.jsonl"), lines(path)
    bases = {name: KnowledgeBase(given.data, name, default, embedder, given.cache) for name in given.sets}
    readers = {name: Reader(m3, base, GAP) for name, base in bases.items()}
    todo, text = {}, set()
    for name in given.sets:
        some = asks(given.data, name, given.dev, given.test)
        keys = [one.key for one in some if (one.set, one.kind) != ("clapnq", "out")]
        text |= set(keys[: given.text])
        todo[name] = [found[key] for key in keys if key in found and key not in done]
    started, count, total = time.perf_counter(), 0, sum(map(len, todo.values()))
    while any(todo.values()) and time.time() < given.until:
        for name in given.sets:  # by turns, so that whoever stops has some of each
            now, todo[name] = todo[name][: given.batch], todo[name][given.batch :]
            if now:
                rows = readers[name].read(now, now[0]["key"] in text)
                add(path, [{"key": row["key"], **scores} for row, scores in zip(now, rows, strict=True)])
                count += len(now)
        each = (time.perf_counter() - started) / count
        say(f"{count} of {total}; {each:.2f} s an ask; {(total - count) * each / 60:.0f} min left")


def say(text: str) -> None:
    """On standard error, at once."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ask", "read", "report", "weights", "shipped"))
    parser.add_argument("--data", type=Path, default=Path("/work/shared/data"))
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--dev", type=int, default=100, help="questions of a set, each asked twice")
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--model", default="", help="default: memory3's own with its adapter")
    parser.add_argument("--label", default="default")
    parser.add_argument("--labels", type=lambda text: text.split(","), default=[])
    parser.add_argument("--dtype", default="")
    parser.add_argument("--preset", default="", help="of memories; default: the model's own")
    parser.add_argument("--text", type=int, default=80, help="asks of a set that are read as text too, the first ones")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--until", type=float, default=float("inf"), help="time as `date +%%s` says it")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/memory3-measure/absent")
    parser.add_argument("--out", type=Path, default=Path("research/quality/absent.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        if given.what == "report":
            words = lines(given.cache / "words.jsonl")
            report(words, {label: lines(given.cache / f"{label}.jsonl") for label in given.labels}, given.out)
        elif given.what == "weights":
            presence(lines(given.cache / "words.jsonl"), DEFAULT_EMBEDDER, GAP, given.out)
        elif given.what == "shipped":
            for label in given.labels:
                shipped(label, lines(given.cache / f"words-{label}.jsonl"), lines(given.cache / "words.jsonl"))
        else:
            {"ask": ask, "read": read}[given.what](given)


if __name__ == "__main__":
    main()
