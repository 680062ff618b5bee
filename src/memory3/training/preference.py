"""Direct preference optimisation (R. Rafailov et al. 2023, eq. 7).

Of two answers behind the same memories, the chosen one shall gain on the rejected one.

    loss = -log sigmoid(beta ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))))

p0 is the model before training. Its likelihoods are taken once, when the run's groups are sampled, and kept with them: so no
second model is held in RAM, and a run that is resumed compares with the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import xxhash

from memory3.llm import Memory3
from memory3.training.collate import MemoryCollator
from memory3.training.groups import Group
from memory3.training.live import batch_log_likelihoods

__all__ = ["preference_loss", "with_likelihoods"]


def preference_loss(log_likelihoods: torch.Tensor, before: torch.Tensor, beta: float) -> tuple[torch.Tensor, float]:
    """Mean loss, and the share of pairs whose chosen answer gained more than the rejected one.

    Args:
        log_likelihoods: float ``[2 P]``: of P pairs the chosen answer and the rejected one, in turn; sums over tokens, in
            nats.
        before: the same of the model before training.
        beta: how much a nat counts.
    """
    gains = (log_likelihoods - before).view(-1, 2)
    margins = gains[:, 0] - gains[:, 1]
    return -torch.nn.functional.logsigmoid(beta * margins).mean(), float((margins > 0).float().mean())


@torch.no_grad()
def with_likelihoods(
    m3: Memory3,
    groups: Sequence[Group],
    kept: Path,
    dtype: torch.dtype | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> list[Group]:
    """The groups, with the model's log-likelihood `TrainingRow.before` of every answer of a preference.

    Args:
        m3: the model before training.
        groups: a preference that comes again is looked up.
        kept: a file that grows by a line for each, so that an interruption costs little. It is of this model and these
            settings.
        dtype: as in `memory3.training.live.group_loss`.
        told: how many groups are done.
    """
    collate, known = MemoryCollator(m3.prompts.pad_id), _read(kept)
    out = []
    with kept.open("a", encoding="utf-8") as file:
        for done, group in enumerate(groups, 1):
            if group.kind == "preference":
                key = xxhash.xxh3_128_hexdigest(group.to_json().encode())
                if key not in known:
                    batch = collate([group]).to(m3.model.device)
                    known[key] = [float(n) for n in batch_log_likelihoods(m3, m3.model, batch, dtype).sum(-1)]
                    file.write(json.dumps([key, known[key]]) + "\n")
                    file.flush()
                rows = zip(group.rows, known[key], strict=True)
                group = replace(group, rows=tuple(replace(row, before=likelihood) for row, likelihood in rows))
                told(done)
            out.append(group)
    return out


def _read(kept: Path) -> dict[str, list[float]]:
    """Lines written so far; one that was cut short ends the file."""
    known = {}
    if kept.exists():
        whole = [line for line in kept.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept.write_text("".join(whole), encoding="utf-8")
        known = dict(map(json.loads, whole))
    return known
