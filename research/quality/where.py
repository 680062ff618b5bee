"""Where a way keeps pairs, and how much of the attention that the very question and its answer pay to the passage it keeps:
layer by layer, over the passages that `research.quality.ways` has encoded.

    python -m research.quality.where --cache FOLDER --ways "max 1/8, sum 1/8"

``paid``: attention of question and answer to the passage, a query head and token. ``got``: the share of it that kept pairs
get. ``pairs``: kept, a KV head. ``full``: KV heads that keep three quarters of the passage or more, and ``none``, those that
keep one token at most; of all passages, as shares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch

from research.quality.choosing import Way, kept, scores
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


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--ways", required=True)
    parser.add_argument("--passages", type=int, default=10)
    parser.add_argument("--length", type=int, default=128)
    given = parser.parse_args()
    some = passages(Path(given.cache), given.passages)
    paid = [[one.attention("true", layer) for layer in range(len(one.keys))] for one in some]
    for text in given.ways.split(","):
        way = Way.parse(text.strip())
        keeps = [kept(scores(one, way, []), way, given.length) for one in some]
        print(f"{text.strip()}, {len(some)} passages")
        print("layer  paid   got  pairs  full  none")
        rows = []
        for layer in range(len(some[0].keys)):
            all_of = torch.stack([a[layer].sum(-1).mean() for a in paid])
            got = torch.stack([(a[layer] * k[layer][:, None, None]).sum(-1).mean() for a, k in zip(paid, keeps, strict=True)])
            counts = torch.stack([k[layer].float().sum(-1) for k in keeps])
            share = torch.stack([k[layer].float().mean(-1) for k in keeps])
            row = [
                float(x)
                for x in (
                    all_of.mean(),
                    got.sum() / all_of.sum(),
                    counts.mean(),
                    (share >= 0.75).float().mean(),
                    (counts <= 1).float().mean(),
                )
            ]
            rows.append(row)
            print(f"{layer:5}  {row[0]:.3f}  {row[1]:.2f}  {row[2]:5.1f}  {row[3]:.2f}  {row[4]:.2f}")
        mean = torch.tensor(rows).mean(0).tolist()
        print(f" mean  {mean[0]:.3f}  {mean[1]:.2f}  {mean[2]:5.1f}  {mean[3]:.2f}  {mean[4]:.2f}\n")


if __name__ == "__main__":
    main()
