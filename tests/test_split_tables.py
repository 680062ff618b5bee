"""Splitting text with tables: what goes on with a table is read with its header. And the work of splitting is linear."""

from __future__ import annotations

import random
import time

import pytest
import regex
from split_texts import BYTES, PIECES, PROSE, TOKENIZERS, tokens

from memory3.text import split, splitting
from memory3.text.tables import tables
from memory3.types import Document


def references(text: str, max_tokens: int, tokenizer=BYTES):
    """Split, and check all that holds for every text."""
    found = list(split(Document("d", text), tokenizer, max_tokens))
    assert "".join(reference.text for reference in found) == text
    for reference in found:
        assert reference.text == text[reference.start : reference.end]
        assert list(reference.token_ids) == tokens(reference.read_text, tokenizer)
        assert 1 <= len(reference.token_ids) <= max_tokens
        assert reference.header in text[: reference.start]
    return found


def headed(text: str) -> list[str]:
    return [text[table.start : table.body] for table in tables(text)]


ROWS = range(20)
KINDS = {
    "pipes": ("| Ship | Tons |\n|:---|---:|\n", [f"| S{n} | {n * 7} |\n" for n in ROWS]),
    "pipes without a frame": ("Ship | Tons\n--- | ---\n", [f"S{n} | {n * 7}\n" for n in ROWS]),
    "quoted": ("> | Ship | Tons |\n> |---|---|\n", [f"> | S{n} | {n * 7} |\n" for n in ROWS]),
    "org": ("| Ship | Tons |\n|------+------|\n", [f"| S{n} | {n * 7} |\n" for n in ROWS]),
    "psql": (" ship | tons \n------+------\n", [f" S{n} | {n * 7}\n" for n in ROWS]),
    "grid": ("| Ship | Tons |\n+======+======+\n", [f"| S{n} | {n * 7} |\n+------+------+\n" for n in ROWS]),
    "tabs": ("Ship\tTons\n", [f"S{n}\t{n * 7}\n" for n in ROWS]),
    "tabs with a corner": ("\tTons\tCrew\n", [f"S{n}\t{n * 7}\t\n" for n in ROWS]),
    "years": ("Port\t2023\t2024\n", [f"S{n}\t{n * 7}\t{n}\n" for n in ROWS]),
    "Windows lines": ("| Ship | Tons |\r\n|---|---|\r\n", [f"| S{n} | {n * 7} |\r\n" for n in ROWS]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_goes_on_with_a_table_carries_its_header(kind, name):
    header, rows = KINDS[kind]
    assert headed(f"Ships.\n\n{header}{''.join(rows)}\nDone.\n") == [header]
    limit = 3 * len(tokens(header, TOKENIZERS[name])) + 6
    text = f"Ships.\n\n{header}{''.join(rows * 3)}\n{PROSE}"
    start, end = text.index(header), text.index(PROSE)
    found = references(text, limit, TOKENIZERS[name])
    inside = [reference for reference in found if start + len(header) <= reference.start < end - 1]
    assert len(inside) > 2
    assert {reference.header for reference in inside} == {header}
    assert not any(reference.header for reference in found if reference.start <= start or reference.start >= end)


def test_the_header_may_lie_outside_of_the_window(monkeypatch):
    header, rows = KINDS["pipes"]
    monkeypatch.setattr(splitting, "_WINDOW_CHARACTERS_PER_TOKEN", 3)
    found = references(header + "".join(rows * 30), 100)
    assert {reference.header for reference in found[1:]} == {header}


def test_a_long_header_is_left_out():
    header = "| " + " | ".join(f"Measured quantity {n}" for n in range(9)) + " |\n"
    rule, rows = "|---" * 9 + "|\n", "".join("| 1 " * 9 + "|\n" for _ in range(30))
    size = len(tokens(header))
    assert {reference.header for reference in references(header + rule + rows, 2 * size)[1:]} == {""}
    # The row alone where it fits and the rule does not.
    last = references(header + rule + rows, 3 * size + 3)[-1]
    assert last.header == header


@pytest.mark.parametrize(
    "text",
    [
        "Either this | or that.\nPipes | in prose\n\nls | wc | sort\nps | wc | sort\n",
        "Heading\n---\n\ntext | more\n-----\nend\n- a\n- b\n",
        "a | b\n--- | --- | ---\n1 | 2\n",
        "\tint a;\t/* one */\n\tint b;\t/* two */\n\tint c;\t/* three */\n",
        "2024-05-01\tINFO\tstarted\n2024-05-02\tWARN\tslow\n2024-05-03\tINFO\tdone\n",
        "1\tone\n2\ttwo\n3\tthree\n",
        "Name:\tOrm\nPort:\tKiel\n\nend",
        "| a | b |\n|---|---|\n\nno rows",
        "+---+---+\n",
        "|\n|-|\n" * 3 + "-|-",
    ],
)
def test_no_tables(text):
    assert [header for header in headed(text) if header.strip("|-\n")] == []


# As it was: the boundaries of sentences, and graphemes from the start of the text.
OLD_SENTENCE = regex.compile(
    r"""[\p{Sentence_Terminal}…]+ ["'\p{Pe}\p{Pf}]* (?: [^\S\n]*\n | (?=\s) ) (?=\s*[^\s\p{Ll}])
      | [。！？．｡]+ ["'\p{Pe}\p{Pf}]*""",
    regex.VERBOSE,
)
MARKS = [
    ".",
    "…",
    "?!",
    "。",
    "！",
    "．",
    ")",
    '"',
    "’",
    "»",
    " ",
    "\n",
    "\r",
    "\t",
    "\u2028",
    "a",
    "B",
    "1",
    "🇩🇪",
    "e\u0301",
    "👩\u200d👧",
]


@pytest.mark.parametrize("seed", range(200))
def test_boundaries_of_sentences_are_the_old_ones(seed):
    chance = random.Random(seed)
    text = "".join(chance.choices(MARKS if seed % 2 else [*MARKS, *PIECES, PROSE], k=chance.choice([5, 30, 200])))
    start, end = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
    for place in ((0, len(text)), (start, end)):
        assert [m.end() for m in splitting._SENTENCE.finditer(text, *place)] == [
            m.end() for m in OLD_SENTENCE.finditer(text, *place)
        ]


@pytest.mark.parametrize("seed", range(30))
def test_text_without_tables_is_split_as_before(seed, monkeypatch):
    chance = random.Random(seed)
    text = "".join(chance.choices([*MARKS, *(piece for piece in PIECES if "\t" not in piece), PROSE], k=120)).replace(
        "\t", " "
    )
    new = list(split(Document("d", text, "s"), BYTES, 48))
    monkeypatch.setattr(splitting, "_SENTENCE", OLD_SENTENCE)
    monkeypatch.setattr(splitting, "tables", lambda text: iter(()))
    assert new == list(split(Document("d", text, "s"), BYTES, 48))
    assert not any(reference.header for reference in new)


RUNS = [
    *(".", "…", "?!", "。", ")", '"', ".)", ". ", ".\n", "\n", " ", "\r", "\r\n", "\u200b", "a.", "1.", "x", "e\u0301\u0301"),
    *("👩\u200d", "🇩", "|", "|-", "|-|\n", "\t", "a\tb\n", "- \n", "|a\n|-\n", "> ", "\\|", "+-"),
]


@pytest.mark.parametrize("run", RUNS)
def test_boundaries_cost_what_those_of_plain_text_cost(run):
    """The old pattern took 4 s for one of these, and graphemes 4 minutes for another; plain text of the length takes 20 ms."""

    def seconds(text: str) -> float:
        began = time.perf_counter()
        for pattern in (splitting._SENTENCE, splitting._PARAGRAPH, splitting._LINE, splitting._WORD):
            for _ in pattern.finditer(text):
                pass
        for _ in tables(text):
            pass
        return time.perf_counter() - began

    size = 20_000
    assert min(seconds(run * (size // len(run))) for _ in range(3)) < 10 * seconds("A b. " * (size // 5)) + 0.5
    text = run * (size // len(run))
    began = time.perf_counter()
    assert sum(len(reference.text) for reference in split(Document("d", f"a {text} z"), BYTES, 128)) == len(text) + 4
    assert time.perf_counter() - began < 30
