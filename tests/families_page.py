"""Writes docs/families.md: which families of models are read, and what was run for each.

    python tests/families_page.py > docs/families.md

A test compares the page with the tables of ``tests/families.py``, and others hold these tables to what attaching does.
"""

from __future__ import annotations

from families import READ, REAL, REASONS, REFUSED

TOP = """# Families of models

*Written by `python tests/families_page.py` from the tables that the tests run; do not edit.*

memory3 takes causal language models of transformers whose keys can be moved and whose attention can be answered for. That is
measured and not read off a name: at attach a model reads two short memories and the same text, and is refused if its logits
differ ([footguns](footguns.md#models)). A family that is missing here may work; attaching says so.

"Tiny random weights" means: attached, proven at attach, and in `tests/test_families.py` read from a memory once more. It says
that memory is computed rightly. It does not say that a model of this family answers well from memories: that takes real
weights, and `memory3 check` says it of yours.

## Read

| family | in transformers | what was run |
|---|---|---|
"""


BOTTOM = """
RoPE whose angles change with the length of the text (`dynamic`, `longrope`) is refused in every family. Quantised checkpoints
are read where transformers finds the package that they need. Their bytes are part of the fingerprint.
"""


def page() -> str:
    """The whole of docs/families.md."""
    rows = []
    for kind, (name, _) in sorted(READ.items(), key=lambda each: (each[0] not in REAL, each[1][0].lower())):
        run = "tiny random weights"
        if kind in REAL:
            weights, what = REAL[kind]
            run += f"; real weights, {weights}: {what}"
        rows.append(f"| {name} | `{kind}` | {run} |\n")
    refused = []
    for reason, (_, said) in REASONS.items():
        names = sorted(f"{name} (`{kind}`)" for kind, (name, _, why) in REFUSED.items() if why == reason)
        refused.append(f"| {', '.join(names)} | {said} |\n")
    return (
        TOP
        + "".join(rows)
        + "\n## Refused\n\nTried with tiny random weights. A model is refused with the reason in a sentence.\n\n"
        + "| family | why |\n|---|---|\n"
        + "".join(refused)
        + BOTTOM
    )


if __name__ == "__main__":
    print(page(), end="")
