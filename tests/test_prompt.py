"""`PromptBuilder`: the prompt of every mode, written out once by hand; what does not fit, and what ends an answer."""

import pytest
import torch
from tiny import tiny_chat_tokenizer, tiny_model, tiny_tokenizer

from memory3.config import MemoryConfig
from memory3.errors import ConfigError, InputError
from memory3.llm import Memory3
from memory3.models.frame import Place
from memory3.prompt import MODES, check_mode, left_padded
from memory3.recall.request import RequestMemory
from memory3.recall.retrieval import Retrieval
from memory3.types import Reference

TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}, {"role": "user", "content": "When?"}]


def memory3(chat=False, **settings):
    tokenizer = tiny_chat_tokenizer() if chat else tiny_tokenizer()
    return Memory3(tiny_model(), tokenizer, MemoryConfig(reference_length=37, **settings), name="tiny")


@pytest.fixture(scope="module")
def plain():
    return memory3()


@pytest.fixture(scope="module")
def chat():
    return memory3(chat=True)


class Passages:
    """A bank of one reference."""

    def __init__(self, m3):
        self.tokens = tuple(m3.prompts.ids("The old town."))

    def references(self, reference_ids):
        return [Reference(name, name, 0, 0, 0, "", self.tokens) for name in reference_ids]


def test_every_mode_of_a_chat_model(chat):
    """In the words of the template, with the control tokens that it writes."""
    prompts, passage = chat.prompts, chat.prompts.ids("The old town.")

    def text(tokens):
        return chat.tokenizer.decode(tokens)

    assert text(prompts.build("Who?")) == "<s>user\nWho?</s>\n<s>assistant\n"
    assert text(prompts.build("Who?", "memory")) == "\n\nWho?</s>\n<s>assistant\n"
    cue = "<s>user\nUse these passages:\n\n"
    assert text(prompts.build("Who?", "text", [passage])) == f"{cue}The old town.\n\nWho?</s>\n<s>assistant\n"
    assert prompts.build("Who?", "text") == prompts.build("Who?")
    rest = "Who?</s>\n<s>assistant\nI.</s>\n<s>user\nWhen?</s>\n<s>assistant\n"
    assert text(prompts.build(TALK)) == text(prompts.build(TALK, "memory")) == f"<s>user\n{rest}"
    assert text(prompts.build(TALK, "text", [passage, passage])) == f"{cue}The old town.\n\nThe old town.\n\n{rest}"


def test_every_mode_of_a_plain_model(plain):
    prompts, passage = plain.prompts, plain.prompts.ids("The old town.")
    assert plain.tokenizer.decode(prompts.build("Who?")) == "<s>Who?"
    assert plain.tokenizer.decode(prompts.build("Who?", "memory")) == "<s>Who?"
    assert plain.tokenizer.decode(prompts.build("Who?", "text", [passage])) == "<s>Reference:The old town.<s>Who?"
    whole = prompts.ids("As it stands")
    assert prompts.around(whole, "memory", style="plain") == prompts.around(whole, "none", style="plain") == whole
    assert prompts.around(whole, "text", [passage], style="plain") == plain.frame.insert_text(whole, [passage])
    with pytest.raises(ConfigError, match="style 'poem' is unknown: use one of chat, plain"):
        prompts.around(whole, "none", style="poem")


def test_what_is_looked_for(chat):
    prompts = chat.prompts
    assert (prompts.query("Who?"), prompts.query(TALK), prompts.query(TALK[:1])) == ("Who?", "Who?I.When?", "Who?")
    rules = {"role": "system", "content": "Rules of the house"}
    assert prompts.query([rules, TALK[0]]) == "Who?"
    for empty in ("", " \n", TALK[1:2]):
        with pytest.raises(InputError, match="empty"):
            prompts.query(empty)
    tokens = prompts.build(TALK)
    assert prompts.last_words(tokens, 999) == "Who?I.When?"
    assert prompts.last_words(tokens, 2) == chat.tokenizer.decode(prompts.ids("When?")[-2:])
    assert chat.question_tokens("Who?") == prompts.build("Who?", "memory")


@pytest.mark.parametrize("words", [1, 8, 70])
def test_a_conversation_is_looked_up_by_the_same_text_in_both_modes(chat, words):
    """The last chunk's in mode memory. A message that is longer than a chunk is looked up whole in mode text."""
    talk = [
        {"role": "user", "content": "the old town " * 12},
        {"role": "assistant", "content": "a bridge"},
        {"role": "user", "content": " ".join(["river"] * words)},
    ]
    memory = RequestMemory(chat.frame, Retrieval(2), chunk_length=64, room=37, text_of=chat.tokenizer.decode)
    memory.feed(chat.prompts.build(talk, "memory"))
    query, last = chat.prompts.query(talk), memory.lookups[-1]
    if words == 70:
        assert query == talk[-1]["content"]
        assert query.endswith(last)
    else:
        assert query == last
        assert query.endswith(talk[-1]["content"])
        assert len(query) > len(talk[-1]["content"])


def test_a_question_by_itself_is_encoded_without_what_a_conversation_says_around_it(chat):
    """The prefix is read as a memory: docs/usage.md, on the tokens of prompts that `ask` and a server tell."""
    alone, conversation = (chat.prompts.build(each, "memory") for each in ("Who?", [{"role": "user", "content": "Who?"}]))
    assert len(alone) < len(conversation) == len(chat.prompts.build("Who?", "none"))


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_a_context_too_long_loses_its_beginning(plain, chat, style):
    for m3 in (plain, chat):
        prompts, bank = m3.prompts, Passages(m3)
        context = prompts.ids("the river " * 400)
        for mode in MODES:
            row = prompts.row(context, mode, ["a#0", "b#0"], bank, style=style, after=11)
            length = len(row.tokens) + 11 + (prompts.reserved(mode) if mode == "memory" else 0)
            assert prompts.positions - 16 < length <= prompts.positions
            short = prompts.row(context[:5], mode, ["a#0", "b#0"], bank, style=style, after=11)
            end = len(prompts.around([7], "none", style=style)) if style == "chat" else 0
            assert row.tokens[-end - 50 :] == prompts.around(context, mode, style=style)[-end - 50 :]
            assert row.references == short.references == (["a#0", "b#0"] if mode == "memory" else [])
        with pytest.raises(ConfigError, match="2 references leave no room for a question in the 512 positions of tiny"):
            prompts.row(context, "text", ["a#0", "b#0"], bank, style=style, after=495)
    with pytest.raises(ConfigError, match="mode text needs a bank"):
        plain.prompts.row([5], "text", ["a#0"])


def test_positions_that_are_kept(plain):
    prompts, prefix = plain.prompts, len(plain.frame.prefix)
    separator = len(plain.frame.separator)
    assert prompts.reserved("none") == 0
    assert prompts.reserved("memory") == prompts.reserved("memory", 7) == prefix + 37
    assert prompts.reserved("text", 3) == prefix + 3 * (37 + separator)
    most = 512 - prefix - 37 - 3
    prompts.check_length([[5], [5] * most], 3, "memory")
    prompts.check_length([[5] * 509], 3, "text")
    with pytest.raises(InputError, match=f"has {most + 1} tokens, {prefix + 37} positions for memories and 3 new tokens"):
        prompts.check_length([[5], [5] * (most + 1)], 3, "memory")


def test_padding_and_ends(plain):
    prompts = plain.prompts
    tokens, mask = prompts.pad([[5, 6, 7], [8]])
    pad = plain.tokenizer.pad_token_id
    assert prompts.pad_id == pad
    assert tokens.tolist() == [[5, 6, 7], [pad, pad, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert tokens.dtype == mask.dtype == torch.int64
    assert left_padded([[], []], 9).shape == (2, 0)
    end = plain.tokenizer.eos_token_id
    assert prompts.trim([5, 6, end, 7]) == [5, 6]
    assert prompts.trim([5, 6, 7, end], 6) == [5]
    assert prompts.trim([5, 6, 7, end], [11, 7]) == [5, 6]
    assert prompts.trim([5, 6]) == [5, 6]
    assert prompts.answer_ids("Yes.") == [*prompts.ids("Yes."), end]


def test_a_tokenizer_without_padding():
    m3 = memory3()
    m3.tokenizer.pad_token = None
    assert m3.prompts.pad_id == m3.tokenizer.eos_token_id
    m3.tokenizer.eos_token = None
    assert (m3.prompts.pad_id, m3.prompts.answer_ids("Yes.")) == (0, m3.prompts.ids("Yes."))


def test_where_memories_lie():
    """A prompt of 11 tokens in front of them that lacks 2 of a prefix of 5, and begins at position 3."""
    place = Place(11, 2)
    assert place.moved(5) == 8
    assert place.moved(5, origin=3) == 11
    assert place.room(37) == 39
    assert Place(5, 0).moved(5) == 0


def test_ways_of_asking_that_are_none(plain):
    check_mode("none", None)
    for mode, bank, said in (
        ("telepathy", None, "'telepathy' is unknown: use one of memory, text, none"),
        ("text", None, "'text' needs a bank"),
        ("memory", "a path", "'a path' is no bank"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_mode(mode, bank)
