"""`Scorer`: one reading of a prompt for many answers, against a reading for every token of every answer."""

import pytest
import torch
from ram_bank import RamBank
from tiny import tiny_chat_tokenizer, tiny_model, tiny_tokenizer
from transformers import DynamicCache

from memory3.config import MemoryConfig
from memory3.errors import ConfigError, RecallError
from memory3.llm import Memory3
from memory3.prompt import PromptRow
from memory3.scoring import IGNORED, Score, token_log_likelihoods

TEXTS = ["The river rises in the mountains and reaches the sea.", "The bridge was built in 1874.", "Keys and values."]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]
#: One of a token, some that are equal up to their last, some of different lengths, one that is there twice.
ANSWERS = [[[20]], [[20, 21], [20, 22], [20, 22], [23]], [[30, 31, 32, 33, 34], [30, 31, 32], [35, 36]]]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chat"])
def m3(request):
    tokenizer = tiny_chat_tokenizer() if request.param else tiny_tokenizer()
    return Memory3(tiny_model(), tokenizer, MemoryConfig(reference_length=37, chunk_length=7), name="tiny")


def slow(m3, prompt, answer, reading=None):
    """Token by token, each from a forward pass of its own."""
    total, greedy = 0.0, True
    for n, token in enumerate(answer):
        row = [*prompt, *answer[:n]]
        with torch.no_grad():
            if reading is None:
                logits = m3.model(torch.tensor([row])).logits[0, -1]
            else:
                bank, names = reading
                with m3.recall(bank, references=[names]):
                    logits = m3.model(torch.tensor([row])).logits[0, -1]
        total += float(torch.log_softmax(logits, -1)[token])
        greedy &= int(logits.argmax()) == token
    return total, greedy


def same(found, wanted):
    assert [[score.tokens for score in some] for some in found] == [[len(a) for a in some] for some in ANSWERS]
    for some, theirs in zip(found, wanted, strict=True):
        assert [score.total for score in some] == pytest.approx([total for total, _ in theirs], abs=1e-4)
        assert [score.greedy for score in some] == [greedy for _, greedy in theirs]


def test_a_tree_of_answers_is_each_alone(m3):
    found = m3.scorer.score([PromptRow(prompt) for prompt in PROMPTS], ANSWERS)
    same(found, [[slow(m3, prompt, answer) for answer in some] for prompt, some in zip(PROMPTS, ANSWERS, strict=True)])


def test_rows_that_read_memories_beside_rows_that_do_not(m3):
    bank = RamBank(m3, TEXTS)
    names = [[bank.order[1], bank.order[0]], [], [bank.order[2]]]
    rows = [PromptRow(prompt, some) for prompt, some in zip(PROMPTS, names, strict=True)]
    found = m3.scorer.score(rows, ANSWERS, bank)
    wanted = [
        [slow(m3, prompt, answer, (bank, some) if some else None) for answer in answers]
        for prompt, some, answers in zip(PROMPTS, names, ANSWERS, strict=True)
    ]
    same(found, wanted)
    plain = m3.scorer.score([PromptRow(prompt) for prompt in PROMPTS], ANSWERS)
    assert abs(plain[0][0].total - found[0][0].total) > 1e-3  # it does read something
    assert [s.total for s in plain[1]] == pytest.approx([s.total for s in found[1]], abs=1e-5)


def test_inside_a_recall_rows_read_what_it_finds(m3):
    """Answers that differ in their last token alone; a tree cannot be followed, and is refused."""
    bank = RamBank(m3, TEXTS)
    rows, answers = [PromptRow(PROMPTS[0]), PromptRow(PROMPTS[1])], [[[20, 21, 22], [20, 21, 23]], [[24]]]
    fed = [[*PROMPTS[0], 20, 21], PROMPTS[1]]
    with m3.recall(bank, prompt=fed, answer_tokens=[2, 0]):
        found = m3.scorer.score(rows, answers)
    for row, mine, scores in zip(rows, answers, found, strict=True):
        for answer, score in zip(mine, scores, strict=True):
            whole = [*row.tokens, *answer]
            with m3.recall(bank, prompt=[whole], answer_tokens=[len(answer)]), torch.no_grad():
                logits = m3.model(torch.tensor([whole])).logits[0, -len(answer) - 1 : -1]
            logs = torch.log_softmax(logits, -1)
            assert score.total == pytest.approx(float(logs.gather(1, torch.tensor(answer)[:, None]).sum()), abs=1e-4)
    with m3.recall(bank), pytest.raises(RecallError, match="two-dimensional"):
        m3.scorer.score(rows[:1], [[[20, 21], [22, 23]]])


def test_a_cache_of_the_prompts_is_one_that_was_never_scored_behind(m3):
    cache, clean = DynamicCache(config=m3.model.config), DynamicCache(config=m3.model.config)
    rows = [PromptRow(prompt) for prompt in PROMPTS]
    last = [[answers[-1]] for answers in ANSWERS]
    scored, alone = (m3.scorer.score(rows, last, cache=kept) for kept in (cache, None))
    assert [score.total for (score,) in scored] == pytest.approx([score.total for (score,) in alone], abs=1e-5)
    tokens, mask = m3.prompts.pad(PROMPTS)
    cache.crop(tokens.shape[1] - cache.get_seq_length())
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        m3.model(tokens, attention_mask=mask, position_ids=positions, past_key_values=clean)
    real = mask.bool()[:, None, :, None]
    for one, other in zip(cache.layers, clean.layers, strict=True):
        torch.testing.assert_close(one.keys * real, other.keys * real, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.values * real, other.values * real, rtol=1e-5, atol=1e-5)


def test_rows_that_name_references_are_read_from_a_bank(m3):
    for options in ({}, {"bank": RamBank(m3, TEXTS), "cache": DynamicCache()}):
        with pytest.raises(ConfigError, match="read from a bank"):
            m3.scorer.score([PromptRow([5, 6], ["doc0#0"])], [[[7]]], **options)


def test_the_arithmetic_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]))
    found = token_log_likelihoods(logits, torch.tensor([1, 2, IGNORED]))
    assert found.tolist() == pytest.approx([-1.386294, -0.356675, 0.0], abs=1e-6)
    assert token_log_likelihoods(logits.double(), torch.tensor([0, 0, 0])).dtype == torch.float64
    assert token_log_likelihoods(logits.bfloat16(), torch.tensor([0, 0, 0])).dtype == torch.float32
    assert Score(-6.0, False, 4, -2.5).nll == 1.5
