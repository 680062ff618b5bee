"""What memory3 did for tiny models of each family before its inside was rebuilt, and what it does now.

    python tests/test_frozen.py freeze     # writes `frozen_tiny.json` anew: only where users are meant to see something else

Weights are multiples of 1/64, drawn as whole numbers, so that they are the same on every machine. Each family's seed is the
first whose choices are clear: no token, kept pair or found reference changes when all weights and embeddings are moved by a
hundred thousandth, and every greedy token is ahead of the next best by `MARGIN`. Hashed is what is exact: ids, texts,
positions, and records of memories whose numbers are given. The rest is compared to 1e-5.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import Comparison, digest, likelihood, padded, recalled, rows_of, seen
from tiny import FAMILIES, tiny_chat_tokenizer, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from memory3 import Bank, Document, Memory3, MemoryConfig

FROZEN = Path(__file__).with_name("frozen_tiny.json")
MARGIN = 1e-3

COMMON: dict[str, Any] = {
    "reference_length": 31,
    "chunk_length": 7,
    "references_per_chunk": 2,
    "dtype": "float32",
    "codec": "raw",
    "arrangement": "row",
    "rank_discount": 0.0,
}
#: By family: settings, and whether the tokenizer has a chat template.
SETTINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({"score_gap": 0.5}, False),
    "mistral": (
        {
            "layers": "first_half",
            "budget": "uniform:3",
            "selector": "attention",
            "arrangement": "parallel",
            "memory_temperature": 1.0,
        },
        True,
    ),
    "qwen2": ({"layers": "1:4", "budget": "adaptive:1/4", "references_per_chunk": 3}, True),
    "qwen3": ({"budget": "all", "selector": "first", "memory_temperature": 1.0}, True),
}
#: Models that `tiny` does not make.
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "granite": {"attention_multiplier": 0.1, "residual_multiplier": 0.3, "embedding_multiplier": 4.0},
    "phi3": {"partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layers": [0, 1, 1, 0, 1]},
    "gemma3_text": {
        "query_pre_attn_scalar": 16,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
    },
}
NAMES = (*FAMILIES, *OTHERS)

DOCUMENTS = [
    Document(
        "river", "The river rises in the mountains. It reaches the sea near the old town.", "river.txt", {"kind": "water"}
    ),
    Document(
        "bridge",
        "The bridge was built in 1874 by the engineer of the county. Who crossed it paid a toll.",
        "b.txt",
        {"kind": "road"},
    ),
    Document(
        "memory",
        "Memories are keys and values; the reader reads them while the answer is being written.",
        "",
        {"kind": "idea", "n": 3},
    ),
    Document("café", "Füße, naïve café, 東京, emoji 🙂 and tabs\tand  double  spaces.", "signs", {"kind": "idea", "n": 5}),
    Document("short", "The sea.", "short.txt", {"kind": "water"}),
]
QUESTIONS = (
    "Who built the bridge over the river, and when was it built?",
    "Where does the river reach the sea?",
    "What are memories, and who reads them while the answer of the engineer is being written near the old town?",
)
ANSWERS = ("The engineer of the county built it in 1874.", "near", "keys and values; the reader reads them")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": QUESTIONS[1]},
    {"role": "assistant", "content": "Near the old town."},
    {"role": "user", "content": QUESTIONS[0]},
]


class LetterEmbedder:
    """Weighs groups of three letters in 61 bins: whole numbers under one root, so the same on every machine."""

    name = "letters"
    dimension = 61

    def __init__(self, jitter: int = 0) -> None:
        self.jitter = jitter

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.zeros((len(texts), self.dimension))
        for row, text in zip(counts, texts, strict=True):
            data = f" {text.lower()} ".encode()
            for at in range(len(data) - 2):
                mark = zlib.crc32(data[at : at + 3])
                row[mark % self.dimension] += 1 + (mark >> 8) % 97  # of two references never the same score
            row[0] += 1
            row *= shaken(row.shape, self.jitter, zlib.crc32(data))
        return (counts / np.sqrt((counts**2).sum(1, keepdims=True))).astype(np.float32)


class ExactWriter(Memory3):
    """Memories of fixed numbers, so that a record's bytes do not hang on the machine."""

    def encode(self, references: Any) -> Any:
        """Keys and values are multiples of 1/8; as many pairs as the real memory of that reference, evenly over the heads."""
        out = []
        for reference, memory in zip(references, super().encode(references), strict=True):
            counts = np.zeros_like(memory.counts)
            length = min(len(reference.token_ids), self.shape.pairs // counts.size)
            counts[:] = length
            pairs = int(counts.sum())
            numbers = torch.arange(pairs * self.shape.head_dim, dtype=torch.float32).view(pairs, -1)
            positions = np.tile(np.arange(length), counts.size).astype(memory.positions.dtype)
            changed = {"keys": (numbers * 37 % 101 - 50) / 8, "values": (numbers * 29 % 103 - 51) / 8}
            out.append(dataclasses.replace(memory, counts=counts, positions=positions, **changed))
        return out


def shaken(shape: tuple[int, ...], jitter: int, seed: int = 0) -> np.ndarray:
    """Factors near 1 that move numbers by a hundred thousandth: by ``-jitter`` the other way. All 1 for 0."""
    noise = np.random.default_rng([abs(jitter), seed]).standard_normal(shape)
    return 1 + 1e-5 * np.sign(jitter) * noise


def model_of(name: str, seed: int, jitter: int = 0) -> PreTrainedModel:
    """A tiny random model, its weights `shaken`."""
    tokenizer = tiny_tokenizer()
    if name in FAMILIES:
        model = tiny_model(name)
    else:
        settings = {
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_size": 96,
            "intermediate_size": 22,
            "max_position_embeddings": 512,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**settings | OTHERS[name]), dtype=torch.float32).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            wide = model.config.hidden_size > 50
            norm = "norm" in key and parameter.ndim == 1
            most = 22 if norm else 16 if wide else 33
            drawn = rng.integers(-most, most + 1, tuple(parameter.shape)) / 64 + norm
            drawn = drawn * shaken(drawn.shape, jitter, zlib.crc32(key.encode())) if jitter else drawn
            parameter.copy_(torch.from_numpy(np.asarray(drawn, dtype=np.float32)))
    return model


class Margins(LogitsProcessor):
    """Notes by how much the best token of every row is ahead of the next, until the row ends."""

    def __init__(self, end: int) -> None:
        self.end, self.least, self.begun = end, float("inf"), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.begun = self.begun or input_ids.shape[1]
        running = ~(input_ids[:, self.begun :] == self.end).any(1)
        best = scores[running].topk(2).values
        if len(best):
            self.least = min(self.least, float((best[:, 0] - best[:, 1]).min()))
        return scores


def observe(name: str, seed: int, folder: Path, jitter: int = 0) -> tuple[dict[str, Any], float]:
    """What a user sees of a family's model, and the least margin of a greedy token."""
    changes, chat = SETTINGS.get(name, ({}, True))
    tokenizer = tiny_chat_tokenizer() if chat else tiny_tokenizer()
    m3 = Memory3(model_of(name, seed, jitter), tokenizer, MemoryConfig(**COMMON | changes), name="tiny")
    margins = Margins(tokenizer.eos_token_id)
    watch = LogitsProcessorList([margins])
    out: dict[str, Any] = {}
    with Bank.open(folder / "bank", m3, embedder=LetterEmbedder(jitter)) as bank:
        bank.write(DOCUMENTS)
        rows = rows_of(folder / "bank")
        out["memories"] = memories(bank, list(rows))
        full = name in FAMILIES
        for mode, length in (("memory", 20), ("text", 5), ("none", 5)) if full else (("memory", 20),):
            more = {"bank": bank, "mode": mode, "logits_processor": watch}
            out[mode] = seen(m3.generate(QUESTIONS[0], max_new_tokens=length, min_new_tokens=length, **more))
            out[f"{mode} batch"] = [seen(each) for each in m3.generate(list(QUESTIONS), max_new_tokens=length - 3, **more)]
            out[f"{mode} likelihood"] = likelihood(m3.log_likelihood(QUESTIONS, ANSWERS, bank, mode=mode))
            if chat:
                out[f"{mode} chat"] = seen(m3.generate([CHAT], max_new_tokens=4, **more)[0])
        if full:
            out |= options(m3, bank, watch)
        out |= plain(m3, bank)
    return json.loads(json.dumps(out)), margins.least


def memories(bank: Bank, names: Sequence[str]) -> dict[str, Any]:
    """Of each memory what is whole numbers, and a few sums of what is not."""
    out = {}
    for name, memory in zip(names, bank.memories(names), strict=True):
        weights = torch.from_numpy(np.random.default_rng(5).integers(-3, 4, tuple(memory.keys.shape))).double()
        sums = [float((part.double() * weights).mean()) for part in (memory.keys, memory.values)]
        kept = digest(repr([memory.counts.tolist(), memory.positions.tolist()]))
        out[name] = {"kept": kept, "pairs": len(memory.positions), "sums": [round(x, 7) for x in sums]}
    return out


def options(m3: Memory3, bank: Bank, watch: LogitsProcessorList) -> dict[str, Any]:
    """What may be said of the retrieval."""
    pinned = ["river#0", "short#0"]
    said: dict[str, dict[str, Any]] = {
        "k=1": {"k": 1},
        "k=4": {"k": 4},
        "gap": {"k": 4, "gap": 0.15},
        "where": {"where": {"kind": ["water", "idea"]}},
        "pinned": {"references": pinned},
    }
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 16, "min_new_tokens": 16}
    out: dict[str, Any] = {"beams": [seen(each) for each in m3.generate(list(QUESTIONS[:2]), bank, **beams)]}
    for name, more in said.items():
        out[name] = seen(m3.generate(QUESTIONS[1], bank, max_new_tokens=9, min_new_tokens=9, logits_processor=watch, **more))
    each = [pinned, [], ["memory#1"]]
    answers = m3.generate(list(QUESTIONS), bank, max_new_tokens=9, min_new_tokens=9, references=each, logits_processor=watch)
    out["pinned each"] = [seen(answer) for answer in answers]
    out["pinned likelihood"] = likelihood(m3.log_likelihood(QUESTIONS, ANSWERS, bank, references=each))
    return out


def plain(m3: Memory3, bank: Bank) -> dict[str, Any]:
    """An announced prompt of two rows in passes, then tokens that are given: every log-likelihood is kept."""
    rows = [list(m3.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in QUESTIONS[:2]]
    tokens, mask = padded(m3, rows)
    more = torch.tensor([rows[1][:16], rows[0][:16]])
    whole, all_mask = torch.cat([tokens, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    out: dict[str, Any] = {}
    width, model = tokens.shape[1], m3.model
    for passes in (width, 5):
        ends = [*range(passes, width, passes), *range(width, whole.shape[1] + 1)]
        with m3.recall(bank, prompt=rows) as recall, torch.inference_mode():
            cache, logs, at = None, [], 0
            for end in ends:
                got = model(whole[:, at:end], attention_mask=all_mask[:, :end], past_key_values=cache, use_cache=True)
                cache, at = got.past_key_values, end
                logs.append(got.logits.log_softmax(-1))
            picked = torch.cat(logs, 1)[:, :-1].gather(2, whole[:, 1:, None])[..., 0]
            nats = [
                [round(x, 6) for x in row[keep].tolist()] for row, keep in zip(picked, mask_of_pairs(all_mask), strict=True)
            ]
            out[f"announced, {'one pass' if passes == width else 'passes'}"] = {"nats": nats} | recalled(recall, 2)
    with m3.recall(bank) as recall:
        made = model.generate(tokens[1:], attention_mask=mask[1:], max_new_tokens=9, min_new_tokens=9, do_sample=False)
        out["plain"] = {"tokens": made[0, width:].tolist()} | recalled(recall, 1)
    return out


def mask_of_pairs(mask: torch.Tensor) -> torch.Tensor:
    """Where a token and the one before it are real."""
    return (mask[:, :-1] * mask[:, 1:]).bool()


def exact_rows(folder: Path) -> dict[str, Any]:
    """All bytes of a bank whose memories are fixed numbers."""
    config = MemoryConfig(**COMMON | {"budget": "uniform:6", "selector": "first"})
    m3 = ExactWriter(model_of("llama", 0), tiny_tokenizer(), config, name="tiny")
    with Bank.open(folder / "exact", m3, embedder=LetterEmbedder()) as bank:
        bank.write(DOCUMENTS)
    return json.loads(json.dumps(rows_of(folder / "exact")))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))


def test_bytes_of_rows_are_as_they_were(tmp_path: Path) -> None:
    same(json.loads(FROZEN.read_text(encoding="utf-8"))["rows"], exact_rows(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_as_they_were(name: str, tmp_path: Path) -> None:
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))["families"][name]
    same(frozen["values"], observe(name, frozen["seed"], tmp_path)[0])


def same(frozen: Any, found: Any) -> None:
    result = Comparison.of(frozen, found)
    assert result.frozen > 30
    lines = "\n".join([*result.exact[:12], *result.floats[:12]])
    assert not lines, f"{len(result.exact)} differ, {len(result.floats)} floats differ by more than rounding:\n{lines}"


def freeze() -> None:
    """Write `FROZEN` anew."""
    torch.set_num_threads(1)
    families: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in NAMES:
            for seed in range(100):
                values, margin = observe(name, seed, Path(scratch, f"{name}{seed}"))
                if margin < MARGIN:
                    continue
                others = [observe(name, seed, Path(scratch, f"{name}{seed}-{n}"), jitter=n)[0] for n in (1, -1, 2, -2)]
                moved = [Comparison.of(values, other).exact for other in others]
                print(
                    f"{name} {seed}: margin {margin:.4f}, {list(map(len, moved))} change with the weights",
                    [m[:2] for m in moved if m],
                )
                if not any(moved):
                    break
            else:
                raise SystemExit(f"{name}: no seed whose choices are clear")
            families[name] = {"seed": seed, "margin": round(margin, 6), "values": values}
        rows = exact_rows(Path(scratch))
    text = json.dumps({"rows": rows, "families": families}, ensure_ascii=False, separators=(",", ":"))
    FROZEN.write_text(text.replace('"values"', '\n"values"').replace("},", "},\n") + "\n", encoding="utf-8")
    print(f"{FROZEN}: {FROZEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    if sys.argv[1:] != ["freeze"]:
        sys.exit(__doc__)
    freeze()
