"""Is it in the bank? The score by hand, what it is kept from, and the same in answers and in the engine."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from bank_writer import HashingEmbedder
from tiny import tiny_chat_tokenizer, tiny_model

from memory3 import Bank, ConfigError, Document, Memory3, MemoryConfig
from memory3.decoding import decoding
from memory3.presence import SIGNALS, Presence, PresenceWeights, find_presence_weights, signals
from memory3.serving.citations import Citer
from memory3.serving.engine import Engine
from memory3.serving.job import Finished, Job
from memory3.serving.jobs import Reading
from memory3.text.words import has_words, stem, words

TEXTS = (
    "The bridge was built in 1874 by the engineer of the county.",
    "The river rises in the mountains and reaches the sea.",
    "Memories are keys and values near the old town.",
    "Keys are rotated, values are not.",
)
WEIGHTS = PresenceWeights(
    "hashing", 11, 31, 3, 0.25, (0.5, 0.2, 0.3, -1.0, 0.1), (0.1, 0.2, 0.3, 0.5, 0.7), (0.1, 0.7, 0.2, 0.5, 0.3), 0.11, 0.6
)


def put(cache: Any, fitted: PresenceWeights, **changes: Any) -> None:
    """Where a person's own file would lie."""
    names = (
        "embedder",
        "dimension",
        "reference_length",
        "k",
        "gap",
        "mean",
        "spread",
        "weights",
        "bias",
        "threshold",
        "about",
    )
    said = {"version": 1, "signals": SIGNALS, **{name: getattr(fitted, name) for name in names}, **changes}
    (cache / "presence").mkdir(parents=True, exist_ok=True)
    (cache / "presence" / f"{fitted.embedder}.json").write_text(json.dumps(said))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_words():
    assert words("The bridge's 3,100.5 engineers -- built in_side?") == [
        "the",
        "bridge's",
        "3100.5",
        "engineers",
        "built",
        "in",
        "side",
    ]
    assert [stem(word) for word in ("built", "rises", "cities", "bridge's", "was", "used", "is")] == [
        "built", "ris", "cit", "bridge", "was", "used", "is"
    ]  # fmt: skip
    assert [has_words(text) for text in ("Who?", "1874", "橋は", "อะไร", "?!", "")] == [True, True, False, False, False, False]


def test_signals_by_hand():
    """Of "bridge", "built" and "Romans", the second text has one and the first two, one of them beside "built"."""
    question = "Who built bridges: the Romans?"
    found = signals(question, [0.7, 0.6, 0.5, 0.4], ["He built bridges here.", "A bridge."])
    assert found == pytest.approx({"cosine": 0.7, "margin": 0.7 - 0.5, "words": 2 / 3, "missed": -math.log(2), "pairs": 1 / 4})
    # Nothing but common words: the first stands for all.
    assert signals("Who is it?", [0.3, 0.1], ["That is who."])["words"] == 1


def test_the_score_is_a_logistic_regression():
    texts, cosines = TEXTS[:2], [0.8, 0.7, 0.3]
    question = "When was the bridge built?"
    found = signals(question, cosines, texts)
    odds = 0.11
    for n, name in enumerate(SIGNALS):
        odds += WEIGHTS.weights[n] * (found[name] - WEIGHTS.mean[n]) / WEIGHTS.spread[n]
    judged = WEIGHTS.judge(question, cosines, texts)
    assert judged is not None
    assert judged.score == pytest.approx(1 / (1 + math.exp(-odds)))
    assert judged.found
    assert replace(WEIGHTS, threshold=judged.score + 1e-9).judge(question, cosines, texts) == Presence(judged.score, False)


def test_nothing_is_said_where_nothing_is_known():
    cosines = [0.8, 0.7, 0.3]
    assert WEIGHTS.judge("Who?", cosines, TEXTS[:1]) is not None
    assert WEIGHTS.judge("Who?", cosines[:2], TEXTS[:1]) is None
    assert WEIGHTS.judge("Who?", cosines, []) is None
    assert WEIGHTS.judge("", cosines, TEXTS[:1]) is None
    assert WEIGHTS.judge("誰が橋を", cosines, TEXTS[:1]) is None


def test_what_was_fitted_is_used_for_that_alone(cache):
    shipped = find_presence_weights("all-minilm-l6-v2")
    assert shipped is not None
    default = MemoryConfig()
    mine = (default.reference_length, default.references_per_chunk, default.score_gap)
    assert shipped.fits("all-minilm-l6-v2", 384, *mine)
    others = [("other", 384, 128, 5, 0.1), ("all-minilm-l6-v2", 11, 128, 5, 0.1), ("all-minilm-l6-v2", 384, 64, 5, 0.1)]
    others += [("all-minilm-l6-v2", 384, 128, 3, 0.1), ("all-minilm-l6-v2", 384, 128, 5, 2.0)]
    assert not any(shipped.fits(*other) for other in others)
    assert find_presence_weights("other") is None
    assert find_presence_weights("../presence/all-minilm-l6-v2") is None
    put(cache, replace(shipped, threshold=0.77))
    own = find_presence_weights("all-minilm-l6-v2")
    assert own is not None
    assert own.threshold == 0.77


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"signals": ["cosine"]},
        {"spread": [0, 1, 1, 1, 1]},
        {"weights": [1, 2]},
        {"threshold": 1.5},
        {"bias": "x"},
    ],
)
def test_a_damaged_file_is_named(cache, changes):
    put(cache, WEIGHTS, **changes)
    with pytest.raises(ConfigError, match=r"hashing\.json"):
        find_presence_weights("hashing")


def test_answers_and_the_engine_tell_the_same(cache, tmp_path):
    config = MemoryConfig(reference_length=31, chunk_length=40, references_per_chunk=3, score_gap=0.25, dtype="float32")
    m3 = Memory3(tiny_model("llama", max_position_embeddings=512), tiny_chat_tokenizer(), config, name="tiny")
    bank = Bank.open(tmp_path / "bank", m3, embedder=HashingEmbedder())
    bank.write([Document(f"doc{n}", text) for n, text in enumerate(TEXTS)])
    questions = ["The bridge was built by the engineer of the county in", "Colourless ideas sleep?"]
    without = m3.generate(questions[0], bank, max_new_tokens=2)
    assert (without.found, without.found_score) == (None, None)
    put(cache, WEIGHTS)
    expected = []
    for question, hits in zip(questions, bank.search(questions, 3), strict=True):
        read = [hit.reference_id for hit in hits if hit.score >= hits[0].score - 0.25]
        texts = [reference.text for reference in bank.references(read)]
        expected.append(WEIGHTS.judge(question, [hit.score for hit in hits], texts))
    assert [one.found for one in expected if one] == [True, False], expected
    for mode in ("memory", "text"):
        told = m3.generate(questions, bank, mode=mode, max_new_tokens=2)
        assert [(one.found, one.found_score) for one in told] == [
            (one.found, pytest.approx(one.score)) for one in expected if one
        ]
    chat = [{"role": "user", "content": questions[1]}]
    assert m3.generate(chat, bank, max_new_tokens=2).found is False  # type: ignore[call-overload]
    talk = [*chat, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]
    for prompt, options in (
        (talk, {}),
        (questions[1], {"k": 2}),
        (questions[1], {"references": ["doc1#0"]}),
        (questions[1], {"k": 3}),
    ):
        assert m3.generate(prompt, bank, max_new_tokens=2, **options).found is None  # type: ignore[call-overload]
    assert m3.generate(questions[1], mode="none", max_new_tokens=2).found is None
    settings, _ = decoding(m3.model, 2, {})
    with Engine(m3) as engine:
        for mode in ("memory", "text"):
            for question, wanted in zip(questions, expected, strict=True):
                done = list(engine.submit(Job(question, settings, mode, bank, m3.retrieval(None, None, None))))[-1]
                assert isinstance(done, Finished)
                assert wanted is not None
                assert done.presence is not None
                assert (done.presence.found, done.presence.score) == (wanted.found, pytest.approx(wanted.score))
                about = Citer(Reading(None, "none", m3.retrieval(None, None, None)), "").about(replace(done, citations=[]))
                assert (about["found"], about["found_score"]) == (wanted.found, pytest.approx(wanted.score, abs=1e-6))
