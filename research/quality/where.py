"""What a way keeps of what questions look at, without a forward pass: over passages that `research.quality.ways` has encoded
with the queries ``true`` and ``repeat``.

    python -m research.quality.where --model FOLDER --cache FOLDER --ways "max 1/8, read 1/8" [--layers]

``lost``: square sum of what the heads of all layers write otherwise into the residual stream for question and answer, over
that of what they write with all pairs; each KV head by itself, and the softmax not divided anew. On wiki_qa it orders ways
nearly as the answer's NLL does, on friendsqa it does not (research/log.md). ``each``: the mean of the same of each layer.
``got``: the share of attention kept.

With ``--layers``, of every layer ``paid``: attention of question and answer to the passage, a query head and token; ``got``;
``pairs`` kept, a KV head; ``full``: share of KV heads that keep three quarters of the passage or more, and ``none`` of those
that keep one token at most.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open

from research.quality.choosing import Way, biases, kept, scores
from research.quality.errors import written_products
from research.quality.passages import Passage


def passages(folder: Path, most: int) -> list[Passage]:
    """Those with the queries of a question, with the passage's own queries beside them."""
    files = [safetensors.torch.load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    found: list[Passage] = []
    for mine in files:
        twin = next((f for f in files if "repeat.lse" in f and torch.equal(f["keys"][0], mine["keys"][0])), None)
        if "true.lse" not in mine or twin is None:
            continue
        both = {**twin, **mine}
        kinds = {key.partition(".")[0] for key in both if "." in key}
        queries = {kind: (both[f"{kind}.query"], both[f"{kind}.lse"]) for kind in kinds}
        found.append(Passage(both["keys"], both["values"], queries, both["keys"].shape[-1] ** -0.5))
        if len(found) == most:
            break
    return found


def maps_in(folder: Path, layers: int, dim: int) -> list[torch.Tensor]:
    """W_o of every layer of a model's folder, ``[A, d, hidden]``."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = [file.get_tensor(f"model.layers.{layer}.self_attn.o_proj.weight") for layer in range(layers)]
    return [one.float().T.reshape(-1, dim, one.shape[0]) for one in found]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with model.safetensors")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--ways", required=True)
    parser.add_argument("--passages", type=int, default=3)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", action="store_true")
    given = parser.parse_args()
    some = passages(Path(given.cache), given.passages)
    layers, _, _, dim = some[0].keys.shape
    outputs = maps_in(Path(given.model), layers, dim)
    products = [written_products(one, "true", outputs) for one in some]
    paid = [[one.attention("true", layer) for layer in range(layers)] for one in some]
    for text in given.ways.split(","):
        way = Way.parse(text.strip())
        lost, whole = torch.zeros(layers), torch.zeros(layers)
        keeps = []
        for one, mine in zip(some, products, strict=True):
            keep = kept(scores(one, way, outputs), way, given.length)
            added = biases(one, way, keep, outputs)
            apart = (keep.float() if added is None else keep * added.exp()) - 1
            lost += torch.einsum("lhs,lhsk,lhk->l", apart, mine, apart)
            whole += mine.sum((1, 2, 3))
            keeps.append(keep)
        got = torch.tensor(
            [
                [float((a * k[:, None, None]).sum()) for a, k in zip(p, m, strict=True)]
                for p, m in zip(paid, keeps, strict=True)
            ]
        ).sum(0)
        every = torch.tensor([[float(a.sum()) for a in p] for p in paid]).sum(0)
        share, each = float(got.sum() / every.sum()), float((lost / whole).mean())
        print(f"{text.strip():32} lost {float(lost.sum() / whole.sum()):.3f}  each {each:.3f}  got {share:.3f}")
        if not given.layers:
            continue
        print("layer  paid   got  pairs  full  none")
        for layer in range(layers):
            counts = torch.stack([k[layer].float().sum(-1) for k in keeps])
            parts = torch.stack([k[layer].float().mean(-1) for k in keeps])
            mean = sum(float(p[layer].sum(-1).mean()) for p in paid) / len(paid)
            full, none = (parts >= 0.75).float().mean(), (counts <= 1).float().mean()
            print(f"{layer:5}  {mean:.3f}  {got[layer] / every[layer]:.2f}  {counts.mean():5.1f}  {full:.2f}  {none:.2f}")


if __name__ == "__main__":
    main()
