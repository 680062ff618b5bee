"""What it changes that the attention to memories is counted in about ten layers and not in all: shares of citations, and which
reference is named first.

    python research/serving/shares.py --bank BANK --questions 60 --out FILE                 # default model
    python research/serving/shares.py --model FOLDER --questions 60 --out FILE              # another; its bank is written

Each question is answered twice, with the same tokens. Questions are stretches of the bank's own references, asked back.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any


def compare(m3: Any, bank: Any, questions: list[str]) -> dict[str, Any]:
    """Figures over all answers that read two references or more."""
    from memory3.attention import reading

    few, differences, first, told = reading._LAYERS, [], 0, 0
    for question in questions:
        shares = []
        for number in (1 << 20, few):
            reading._LAYERS = number
            answer = m3.generate(question, bank, max_new_tokens=64)
            shares.append(({one.reference_id: one.share for one in answer.citations}, answer.token_ids))
        (whole, tokens), (part, again) = shares
        assert tokens == again
        if len(whole) < 2:
            continue
        told += 1
        differences.append(max(abs(whole.get(name, 0) - part.get(name, 0)) for name in whole | part))
        first += max(whole, key=whole.__getitem__) == max(part, key=part.__getitem__)
    reading._LAYERS = few
    differences.sort()
    return {
        "layers": [len(reading.counted(m3.shape.layers)), len(m3.shape.layers)],
        "answers": told,
        "same_first": first,
        "difference_of_the_share_that_differs_most": {
            "mean": sum(differences) / max(told, 1),
            "p95": differences[int(0.95 * (told - 1))] if told else 0.0,
            "most": differences[-1] if told else 0.0,
        },
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="name or folder [the default model]")
    parser.add_argument("--bank", default="", help="folder of a bank of that model [one of 100 references is written]")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    asked = parser.parse_args()

    from memory3 import Memory3
    from memory3.bank import Bank
    from memory3.benchmarks.measure import bank_references, python_documents

    m3 = Memory3.from_pretrained(*([asked.model] if asked.model else []))
    with tempfile.TemporaryDirectory() as folder, Bank.open(asked.bank or folder, m3) as bank:
        if not asked.bank:
            bank.write(python_documents(m3, 100))
        draw, references = random.Random(3), list(bank_references(bank))
        questions = []
        for _ in range(asked.questions):
            ids = draw.choice(references).token_ids
            start = draw.randrange(max(1, len(ids) - 24))
            questions.append("What is this about: " + m3.tokenizer.decode(ids[start : start + 24]) + "?")
        found = {"model": m3.name, "questions": asked.questions, **compare(m3, bank, questions)}
    asked.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # a checkout of the repository
    main()
