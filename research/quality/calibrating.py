"""Heads weighed by what questions look at: a few passages with questions, of those that are for training, say how much of the
attention that a repetition pays in a head a question will pay there.

    python -m research.quality.calibrating --model MODEL --data DIR/reading --out FILE

Of every KV head a line of least squares from the repetition's features (`FEATURES`, of each token) to the most that questions
and answers paid the token. A file in safetensors: for every choice of features in `FITS` float32 ``[L, H, F]``.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import safetensors.torch
import torch

from memory3.calibration.selector import passages_in, read_questions
from memory3.config import MemoryConfig
from memory3.llm import Memory3
from memory3.types import Document, Reference
from research.quality.passages import Passages

__all__ = ["FITS", "features"]

FEATURES = ("max", "rms", "group", "one")
#: Which features each fit looks at.
FITS = {"scale": ("max",), "line": ("max", "one"), "rmsline": ("rms", "one"), "all": FEATURES}
#: Of the mean square of a feature, so that a head that questions hardly ever use has a finite weight.
_RIDGE = 1e-3


def features(paid: torch.Tensor) -> torch.Tensor:
    """Of every token, float32 ``[H, S, 4]``, from what the repetition paid, ``[H, G, T, S]``."""
    most = paid.amax((1, 2))
    return torch.stack([most, paid.square().mean((1, 2)).sqrt(), paid.sum(1).amax(1), torch.ones_like(most)], -1)


def fitted(x: torch.Tensor, target: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    """Weights ``[H, 4]`` of features ``[H, n, 4]`` for a target ``[H, n]``, 0 for those that ``names`` leave out."""
    at = [FEATURES.index(name) for name in names]
    some = x[..., at].double()
    squares = some.transpose(1, 2) @ some
    squares += _RIDGE * torch.diag_embed(squares.diagonal(dim1=1, dim2=2))
    found = torch.linalg.solve(squares, some.transpose(1, 2) @ target.double()[..., None])[..., 0]
    weights = torch.zeros(x.shape[0], len(FEATURES))
    weights[:, at] = found.float()
    return weights


@torch.no_grad()
def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder of amazon.jsonl.gz and reddit.jsonl.gz")
    parser.add_argument("--passages", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", required=True)
    parser.add_argument("--cache", required=True)
    given = parser.parse_args()
    m3 = Memory3.from_pretrained(given.model, config=MemoryConfig.preset("full"))
    drawn = [p for name in ("amazon", "reddit") for p in passages_in(read_questions(Path(given.data) / f"{name}.jsonl.gz"))]
    random.Random(0).shuffle(drawn)
    references: list[Reference] = []
    questions: list[list[tuple[str, str]]] = []
    for number, passage in enumerate(drawn):
        for reference in m3.split(Document(f"passage {number}", passage.text)):
            held = [qa for qa in passage.questions if qa[1] in reference.text][:3]
            if held:
                references.append(reference)
                questions.append(held)
                break
        if len(references) == given.passages:
            break
    store, started = Passages(Path(given.cache), m3), time.perf_counter()
    store.fill("repeat", references, [r.id for r in references], None, given.batch)
    print(f"repetitions: {time.perf_counter() - started:.0f} s", flush=True)
    frame = m3.prompts.frame
    names = [f"{r.id}, {q}" for r, held in zip(references, questions, strict=True) for q, _ in held]
    asked = [[*frame.after(m3.prompts.ids(q)), *m3.prompts.ids(a)] for held in questions for q, a in held]
    store.fill("true", [r for r, held in zip(references, questions, strict=True) for _ in held], names, asked, given.batch)
    print(f"{len(names)} questions: {time.perf_counter() - started:.0f} s", flush=True)
    layers = m3.geometry.num_layers
    x: list[list[torch.Tensor]] = [[] for _ in range(layers)]
    target: list[list[torch.Tensor]] = [[] for _ in range(layers)]
    for reference, held in zip(references, questions, strict=True):
        repeated = store.load(reference.id)
        looked = [store.load(f"{reference.id}, {q}") for q, _ in held]
        for layer in range(layers):
            x[layer].append(features(repeated.attention("repeat", layer)))
            target[layer].append(torch.stack([one.attention("true", layer).amax((1, 2)) for one in looked]).amax(0))
    weights = {
        fit: torch.stack([fitted(torch.cat(x[n], 1), torch.cat(target[n], 1), names) for n in range(layers)])
        for fit, names in FITS.items()
    }
    safetensors.torch.save_file(weights, given.out)
    scale = weights["scale"][..., 0]
    print(f"{len(references)} passages; scale by layer:", " ".join(f"{v:.2f}" for v in scale.mean(1).tolist()))


if __name__ == "__main__":
    main()
