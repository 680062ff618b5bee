"""Writes docs/structure.md: the floors of the house, and every module in one sentence.

    python tests/structure.py > docs/structure.md

The floors are those that tests/house.py lists and tests/test_house.py checks. A module's sentence is the first of its
docstring.
"""

from __future__ import annotations

import ast
import re

from house import FILES, FLOORS, unit

#: By a unit that stands on a floor: what the floor is, and how data flows through it. Every floor needs one.
ABOUT = {
    "types": (
        "Values and settings",
        "Everything above passes these values on. A `Document` becomes `Reference`s, a `Reference` a `Memory`, "
        "and an answer has `Citation`s. "
        "Settings are frozen and checked once. Nothing here knows a model or a disk.",
    ),
    "attention": (
        "Attention",
        "A `Memory` is laid out as tensors and read beside the context under one softmax. What a device decides"
        " is behind a kernel, which "
        "gives the output and the log-sum-exp. Nothing here knows a codec, a model's name or a bank.",
    ),
    "codec": (
        "Codecs",
        "A `Memory` becomes a record of a fixed number of bytes, and a record a `Memory` on a given device. A "
        "codec is one file in `kinds/`, "
        "which says its name, options, cost and help.",
    ),
    "text": (
        "Texts and models",
        "`text/` turns files into documents and documents into references. `models/` turns a name into a model "
        "and a tokenizer in memory, and "
        "says what of them can change a memory (the fingerprint).",
    ),
    "encode": (
        "Encoding",
        "References go in, memories come out. One forward pass gives keys and values, a selector scores every "
        "token, a budget keeps the best.",
    ),
    "bank": (
        "The bank",
        "Documents go in and are encoded by whoever the bank was opened with. A query goes in and the nearest "
        "references come out; ids go in "
        "and memories come out. `format/` says what rows, a manifest and records are, and touches no disk. "
        "`backends/` keep them somewhere.",
    ),
    "prompt": (
        "Prompts, scores and answers",
        "A question or chat becomes token ids in the form each mode needs: one builder makes all prompts. One "
        "scorer says how likely given "
        "answers are. Token ids that the model gave become an `Answer`.",
    ),
    "recall": (
        "Recall",
        "The memory of one request has its clock, its references, where they lie and how much they were looked "
        "at. It knows no engine. "
        "Every 64 tokens become a query to the bank; what is found is laid out, rotated and read by attention. "
        "An adapter drives many "
        "requests inside plain `model.generate()`.",
    ),
    "llm": (
        "The facade",
        "`Memory3` puts the floors below together: it loads, proves and attaches a model, writes references and"
        " answers questions.",
    ),
    "calibration": (
        "Calibration",
        "From texts and a model come codebooks and the weights of the learned selector. They are kept in the "
        "cache folder, where `Memory3` finds them.",
    ),
    "evaluation": (
        "Evaluation, training, planning, preparing, looking inside",
        "Five that do not import one another. Questions become results with intervals; records become adapters; a model's sizes "
        "become costs; raw texts become documents worth a memory; texts become circuits, and facts rates at which a text can "
        "stand for them.",
    ),
    "serving": (
        "Serving",
        "Many requests at once over one model, each with its own memories, and HTTP in front of them: OpenAI's routes, and "
        "banks for other machines. `engine` knows no network.",
    ),
    "vllm": (
        "Inside vLLM",
        "A plugin of vLLM: its scheduler finds what requests read and sends packed records, its workers decode and lay "
        "them out, its attention reads them beside the paged cache. vLLM is imported here alone.",
    ),
    "benchmarks": ("Benchmarks", "Measurements of speed and size with real models. They print JSON."),
    "checking": (
        "The check",
        "A model and a user's own documents go in. Parity, what memories gain and cost, and a verdict in one sentence come out.",
    ),
    "demo": ("The demo", "A real bank and three questions, without a terminal."),
    "plugs": (
        "Plugs",
        "A bank, and a model that reads it, as other programs take them. Each file is one program's way, behind an extra of "
        "its name.",
    ),
    "cli": (
        "Commands",
        "Options become calls of the floors below, results become tables or JSON, errors become one sentence "
        "and an exit status.",
    ),
    "__init__": ("The package", "The public names, imported on first use, and `python -m memory3`."),
}
HEAD = """# Structure

*Written by `make structure` from the first sentence of each module; do not edit. A test compares it with the tree.*

A file imports lower floors, or earlier files of its own folder. Folders of one floor do not import one another. Importing the package changes nothing in transformers.

    text -> Document -> Reference -> encode -> select -> Memory -> codec -> record -> Bank
         -> search every 64 tokens -> record -> decode -> layout -> attention -> tokens, citations
"""


def sentence(module: str) -> str:
    """The first sentence of a module's docstring.

    Raises:
        AssertionError: the module has none, or it does not end.
    """
    text = ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    first = re.match(r".+?(?<![ (][A-Z])[.?](?=\s+[A-Z`]|$)", paragraph)  # an initial ends no sentence
    assert first, f"{module}: begin its docstring with a sentence that says what the module is for"
    return first[0]


def title(units: set[str]) -> tuple[str, str]:
    """Name of a floor, and how data flows through it."""
    found = [about for name, about in ABOUT.items() if name in units]
    assert found, f"floor {sorted(units)}: give one of its units a paragraph in {__name__}.ABOUT"
    return found[0]


def page() -> str:
    """The whole of docs/structure.md."""
    parts = [HEAD]
    for number, units in enumerate(FLOORS):
        modules = [module for module in FILES if unit(module) in units]
        if not modules:
            continue
        name, flow = title(units)
        rows = [f"| `{module.removeprefix('memory3.')}` | {sentence(module)} |" for module in modules]
        parts += [f"## {number}. {name}\n\n{flow}\n", "| module | what it is for |\n|---|---|\n" + "\n".join(rows) + "\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
