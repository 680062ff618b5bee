"""Splitting: what holds for every text and tokenizer, then where the boundaries fall."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from split_texts import BYTES, CONTROL, PIECES, PROSE, TOKENIZERS, tokens
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memory3.errors import ConfigError, InputError, ModelError
from memory3.text import split
from memory3.types import Document


def checked(text: str, max_tokens: int, tokenizer=BYTES) -> list[str]:
    """Split, and check all that holds for every text."""
    document = Document("d", text, "source", {"year": 1999})
    references = list(split(document, tokenizer, max_tokens))
    assert "".join(reference.text for reference in references) == (text if text.strip() else "")
    end = 0
    for ordinal, reference in enumerate(references):
        assert (reference.id, reference.document_id, reference.ordinal) == (f"d#{ordinal}", "d", ordinal)
        assert (reference.source, reference.metadata) == ("source", {"year": 1999})
        assert reference.start == end
        end = reference.end
        assert reference.text == text[reference.start : end]
        assert 1 <= len(reference.token_ids) <= max_tokens
        assert list(reference.token_ids) == tokens(reference.text, tokenizer)
    return [reference.text for reference in references]


# What holds for every text


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_text(name, seed):
    chance = random.Random(seed)
    text = "".join(chance.choices([*PIECES, PROSE], k=chance.choice([1, 5, 50, 200])))
    checked(text, chance.choice([25, 31, 64, 128]), TOKENIZERS[name])


@pytest.mark.parametrize(("name", "max_tokens"), [*itertools.product(TOKENIZERS, [2, 3, 5, 7, 11]), ("byte_level", 1)])
def test_tiny_references(name, max_tokens):
    checked("Hello  world. How 1234?\r\n\r\nGood   bye.\n" * 9, max_tokens, TOKENIZERS[name])


@pytest.mark.parametrize("seed", range(20))
def test_windows_leave_no_trace(seed, monkeypatch):
    text = "".join(random.Random(seed).choices([*PIECES, PROSE], k=60))
    whole = checked(text, 32)
    monkeypatch.setattr("memory3.text.splitting._WINDOW_CHARACTERS_PER_TOKEN", 12)
    assert checked(text, 32) == whole


@pytest.mark.parametrize("text", ["", " ", "\n\r\n\t\u00a0\u2028 "])
def test_nothing_to_remember(text):
    assert checked(text, 8) == []


def test_tokenizers_that_drop_white_space():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"[\u200b\x00]"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert checked("\u200b \u200b word word\n\n\u200b\n\nword" + " " * 3000, 2, fast) == [
        "\u200b \u200b word word\n\n\u200b\n\n",
        "word" + " " * 3000,
    ]
    assert list(split(Document("d", "\u200b"), fast, 2)) == []


# Where boundaries fall


def sentences(count: int, words: int = 6) -> list[str]:
    return [f" The gulls {'stood ' * (words - 3)}there." for _ in range(count)]


def test_short_text_is_one_reference():
    assert checked(PROSE, 512) == [PROSE]


def test_paragraphs_first():
    paragraph = "The sea was calm. The gulls stood on the wall.\n\n"
    size = len(tokens(paragraph))
    assert checked(paragraph * 7, 2 * size + size // 2) == [paragraph * 2] * 3 + [paragraph]


def test_sentences_are_packed_and_not_cut():
    text = "".join(sentences(40))
    size = len(tokens(sentences(1)[0]))
    pieces = checked(text, 4 * size + size // 2)
    assert pieces == ["".join(sentences(4))] * 10


@pytest.mark.parametrize("seed", range(10))
def test_no_sentence_that_fits_is_cut(seed):
    chance = random.Random(seed)
    parts = [sentence for _ in range(60) for sentence in sentences(1, chance.randint(3, 20))]
    limit = max(len(tokens(part)) for part in parts) + chance.randint(0, 20)
    ends = set(itertools.accumulate(map(len, parts)))
    assert set(itertools.accumulate(map(len, checked("".join(parts), limit)))) <= ends


def test_hard_wrapped_lines_do_not_end_sentences():
    wrapped = "The gulls stood\non the wall and\nlooked at the sea.\nThe sea was\ncalm that day.\n"
    for piece in checked(wrapped * 10, 40):
        assert piece.endswith((".\n", "."))


def test_lines_where_there_are_no_sentences():
    row = "gulls,wall,sea,1987\n"
    pieces = checked(row * 50, 5 * len(tokens(row)) + 3)
    assert pieces == [row * 5] * 10


def test_words_where_a_sentence_is_too_long():
    words = "gulls stood on the wall and " * 50
    for piece in checked(words.strip(), 16):
        assert set(piece.split()) <= {"gulls", "stood", "on", "the", "wall", "and"}


def test_a_heading_stays_with_a_long_paragraph():
    first, *_ = checked("# Gulls\n\n" + "".join(sentences(30)).strip(), 64)
    assert first.startswith("# Gulls\n\nThe gulls")


def test_abbreviations_and_numbers_end_no_sentence():
    text = "Version 3.14 of the file a.txt, i.e. the old one, was lost. " * 6
    one = len(tokens(text)) // 6
    assert all(piece.rstrip().endswith("lost.") for piece in checked(text, 2 * one + one // 2))


@pytest.mark.parametrize("cluster", ["👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "नि"])
def test_graphemes_stay_whole(cluster):
    for piece in checked(cluster * 60, len(tokens(cluster)) * 3 + 1):
        assert piece == cluster * (len(piece) // len(cluster))


def test_windows_line_ends_stay_whole():
    for piece in checked("gulls\r\n\r\nwall\r\n" * 60, 17):
        assert not piece.startswith("\n")


def test_right_to_left_and_unspaced_scripts():
    assert all(piece.rstrip().endswith(".") for piece in checked("ذهب الولد إلى البيت. ثم نام. " * 20, 100))
    assert all(piece.endswith("。") for piece in checked("海は静かだった。鳥は壁に立っていた。" * 20, 100))


def test_white_space_goes_with_a_neighbour():
    for text in ("  \n gulls" * 80, "gulls." + "\n" * 20 + "wall." * 30, "gulls " * 40 + "\n" * 14, "\n" * 14 + " gulls" * 40):
        assert all(piece.strip() for piece in checked(text, 32))


def test_long_runs_of_white_space_stand_alone():
    pieces = checked("gulls" + "\n" * 500 + "wall", 32)
    assert pieces[0].startswith("gulls\n")
    assert pieces[-1].endswith("\nwall")
    pieces = checked("gulls wall" + "\n" * 500, 32)
    assert pieces[0].startswith("gulls wall\n")


def test_control_tokens_in_a_text_are_ordinary_characters():
    (reference,) = split(Document("d", f"before{CONTROL}after"), BYTES, 64)
    assert BYTES.convert_tokens_to_ids(CONTROL) not in reference.token_ids
    assert BYTES.decode(reference.token_ids) == f"before{CONTROL}after"


# Speed and streaming


@pytest.mark.parametrize(
    "text",
    ["abcdefghij1xq" * 8_000, "a" * 100_000, "😀" * 25_000, "gulls stood " * 8_000, " " * 100_000 + "x", "x\n" * 30_000],
    ids=["one word", "one letter", "emoji", "no sentence", "white space", "lines"],
)
def test_unbroken_text_is_cut_in_linear_time(text):
    began = time.perf_counter()
    for _ in split(Document("d", text), BYTES, 128):
        pass
    assert time.perf_counter() - began < 10


def test_references_come_one_by_one():
    began = time.perf_counter()
    references = split(Document("d", PROSE * 20_000), BYTES, 128)
    assert len(list(itertools.islice(references, 3))) == 3
    assert time.perf_counter() - began < 3


# What cannot be split


@pytest.mark.parametrize("max_tokens", [0, -1, 1.5, True, "128"])
def test_senseless_lengths(max_tokens):
    with pytest.raises(ConfigError, match="max_tokens"):
        split(Document("d", "x"), BYTES, max_tokens)


def test_a_character_with_too_many_tokens():
    with pytest.raises(ConfigError, match=r"'😀' at character 6 of document 'd' has 4 tokens, more than max_tokens=3"):
        list(split(Document("d", "gulls 😀"), BYTES, 3))


def test_lone_surrogates():
    with pytest.raises(InputError, match="lone surrogate at character 1"):
        split(Document("d", "a\ud800"), BYTES, 8)


def test_slow_tokenizers():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow"):
        split(Document("d", "x"), Slow(), 8)
