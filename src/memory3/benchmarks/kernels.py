"""Attention kernels beside torch's own ``scaled_dot_product_attention``, which tells no log-sum-exp: milliseconds of one
layer.

Three ways a model reads: a prompt (causal), one decoded token a row against a context and memories laid in front of it,
and the chunks of a prompt against their memories, whose heads have different lengths. Arms take turns. On a GPU its work
is waited for. The figures of CUDA's kernels are still to be taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from memory3.attention.kernels import KERNELS, choose, masked
from memory3.benchmarks.measure import alternate, ratio
from memory3.errors import ConfigError

__all__ = ["OPTIONS", "run"]

OPTIONS: dict[str, Any] = {
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
    "batch": 8,
    "heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "tokens": 512,
    "pairs": 80,
    "repeats": 30,
}


def run(
    device: str, dtype: str, batch: int, heads: int, kv_heads: int, head_dim: int, tokens: int, pairs: int, repeats: int
) -> dict[str, Any]:
    """For each way of reading: which kernel is chosen, and the milliseconds of every kernel that serves, with its ratio
    to torch's own.

    Args:
        device, dtype: where, and in what numbers.
        batch: rows.
        heads, kv_heads, head_dim: of the model's attention.
        tokens: of the prompt or the context; chunks have 64 of them.
        pairs: memory pairs of the longest head; the others have from a half of them on.
        repeats: turns.
    """
    kind = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(dtype)
    if kind is None:
        raise ConfigError(f"dtype={dtype!r} of benchmark 'kernels' must be float32, float16 or bfloat16")
    if heads % kv_heads:
        raise ConfigError(f"{heads} heads cannot be shared by {kv_heads} KV heads: heads must be a multiple of kv_heads")
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(device, kind)

    def ragged(rows: int, length: int) -> torch.Tensor:
        """``[rows, A, 1, length]``: the far ends of the first ``pairs`` hidden, at another place in each KV head."""
        ends = torch.randint(pairs // 2, pairs + 1, (rows, kv_heads, 1, 1), generator=g)
        at = torch.arange(length)
        hidden = (at >= ends) & (at < pairs)
        bias = torch.zeros(hidden.shape).masked_fill(hidden, masked(kind)).to(device, kind)
        return bias.repeat_interleave(heads // kv_heads, dim=1)

    chunks = batch * -(-tokens // 64)
    ways: dict[str, tuple[int, int, int, torch.Tensor | None, bool]] = {
        "prompt": (batch, tokens, tokens, None, True),
        "decode": (batch, 1, pairs + tokens, None, False),
        "decode_ragged": (batch, 1, pairs + tokens, ragged(batch, pairs + tokens), False),
        "chunks_ragged": (chunks, 64, pairs, ragged(chunks, pairs), False),
    }
    results: dict[str, Any] = {}
    for name, (rows, queries, keys, bias, causal) in ways.items():
        query, key, value = (
            draw(rows, heads, queries, head_dim),
            draw(rows, kv_heads, keys, head_dim),
            draw(rows, kv_heads, keys, head_dim),
        )
        scale = head_dim**-0.5
        stock = partial(
            scaled_dot_product_attention, query, key, value, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=True
        )
        arms = {"torch": _timed(device, stock)}
        for kernel in KERNELS:
            if kernel.serves(query, key, value, bias, causal):
                arms[kernel.name] = _timed(device, partial(kernel.attention, query, key, value, bias, causal, scale))
        figures = alternate(arms, repeats)
        results[name] = {"chosen": choose(query, key, value, bias, causal=causal).name} | {
            arm: ratio(figures, arm, "torch") for arm in figures if arm != "torch"
        }
    return results


def _timed(device: str, call: Callable[[], Any]) -> Callable[[], float]:
    def milliseconds() -> float:
        _wait(device)
        started = time.perf_counter()
        with torch.inference_mode():
            call()
        _wait(device)
        return 1000 * (time.perf_counter() - started)

    return milliseconds


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
