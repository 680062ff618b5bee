"""References that are found by search, read as text or as memories that know what stands before them or not: contains, F1 and
answer NLL.

    python -m research.quality.several --model MODEL --data DIR --arms "text; none best all; prev doc all" --out FILE

An arm of memories is written ``CONTEXT ORDER SHARE [tight] [T=X]``:

    CONTEXT  none: a reference sees the prefix and itself (the package). prev: the reference before it in its document, too.
             doc: up to ``--before`` tokens of its document. title: its document's title and a line break, where it has one
    ORDER    best: the most similar one lies next to the question (the package). doc: references of a document lie as in it,
             its best one deciding where the document comes. far: the most similar one lies farthest from the question
    SHARE    all pairs, or the fraction that the package's selector keeps, scored behind the same context; another selector as
             in 1/8/by=weighed, or by=group, the largest sum over the query heads of a group; 1/8/bias: with fitted biases;
             1/8/packed: through the codec whose codebook is named by ``--codebook``, and of whose budget it must be
    gap=X    references within X of the best one's cosine, instead of the package's 0.1; for text, too
    prior=B  logits of a reference's pairs are lowered by B times what its cosine lacks to the best one's
    rank=B   logits of a reference's pairs are lowered by B times its rank, 0 for the best one
    tight    references end where the next one, or the question, begins (`memory3.attention.layout.arrangement`)

``nothing`` and ``text`` (as the package orders it; ``text doc``, ``text near``: the best one next to the question) are arms
too. A line of JSON an arm, as `research.quality.ways` writes it. ``--split dev`` is for tuning, test for what is reported.
Symbols as there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory3.attention.attach import Seen, attached
from memory3.attention.rotary import rotate
from memory3.bank.embedder import Embedder
from memory3.codec import Codebook, Codec, CodedCodec
from memory3.config import Budget
from memory3.encode.budget import choose
from memory3.encode.encoder import cut
from memory3.encode.mass import fitted_biases
from memory3.encode.selectors import LayerView, Selector, selector
from memory3.encode.selectors.weighed import FEATURES, features
from memory3.evaluation.task import data_records
from memory3.llm import Memory3
from memory3.models.catalogue import DEFAULT_EMBEDDER
from memory3.types import Document, Memory, Reference
from research.quality.ways import NEW, _Source, figures, say, summary


class Group(Selector):
    """What the query heads of a group pay together, at one query at most."""

    name = "group"
    repeats = True

    def score(self, view: LayerView) -> torch.Tensor:
        """float32 ``[N, H, S]``, a logarithm."""
        return features(view)[..., FEATURES.index("group")]


@dataclass(frozen=True)
class _Share:
    """What is kept of a reference, and how: ``amount`` 0 is everything."""

    amount: float = 0.0
    by: str = ""
    bias: bool = False
    packed: bool = False

    @classmethod
    def parse(cls, text: str) -> _Share:
        amount, *options = re.split(r"/(?=[a-z])", text)
        by = [option.removeprefix("by=") for option in options if option.startswith("by=")]
        if unknown := [option for option in options if option not in ("bias", "packed") and not option.startswith("by=")]:
            raise SystemExit(f"{text}: {unknown[0]!r} is unknown")
        share = 0.0 if amount == "all" else float(Fraction(amount))
        return cls(share, by[0] if by else "", "bias" in options, "packed" in options)


class Several:
    """One model and one set."""

    def __init__(
        self,
        m3: Memory3,
        folder: Path,
        cache: Path,
        questions: int,
        seed: int,
        batch: int,
        before: int,
        split: str,
        codec: Codec | None,
    ) -> None:
        self.m3, self.batch, self.before = m3, batch, before
        self.codec = codec
        kb = data_records(folder, "kb")[0]
        self.titles = {str(r["id"]): str(r.get("title", "")) for r in kb}
        self.documents = {str(r["id"]): list(m3.split(Document(str(r["id"]), r["text"]))) for r in kb}
        self.references = {r.id: r for some in self.documents.values() for r in some}
        names = list(self.references)
        cache.mkdir(parents=True, exist_ok=True)
        stored = cache / f"{folder.name}-{len(names)}.npy"
        embedder = Embedder.load(DEFAULT_EMBEDDER)
        if not stored.exists():
            np.save(stored, embedder.encode([self.references[name].text for name in names]))
        vectors = np.load(stored)
        records, _ = data_records(folder, split)
        random.Random(seed).shuffle(records)
        self.items: list[dict[str, Any]] = []
        for record in records:
            answers = [a for a in record["answers"] if a.strip()]
            mine = [r for name in record["references"] for r in self.documents.get(str(name), [])]
            if answers and any(a in r.text for r in mine for a in answers):
                self.items.append({"question": record["question"], "answers": answers})
            if len(self.items) == questions:
                break
        scores = embedder.encode([item["question"] for item in self.items]) @ vectors.T
        for item, score in zip(self.items, scores, strict=True):
            top = np.argsort(-score)[: m3.config.references_per_chunk]
            item["reads"] = [names[n] for n in top if score[n] >= score[top[0]] - m3.config.score_gap]
            item["scores"] = {names[n]: float(score[n]) for n in top}
            item["holds"] = any(a in self.references[r].text for r in item["reads"] for a in item["answers"])
        self.wanted = [m3.prompts.ids(item["answers"][0]) for item in self.items]
        self._made: dict[tuple[str, str, str], Memory] = {}

    def context(self, reference: Reference, kind: str) -> list[int]:
        """Tokens that stand before a reference when it is encoded."""
        mine = self.documents[reference.document_id]
        if kind == "none":
            return []
        if kind == "title":
            title = self.titles[reference.document_id]
            return list(self.m3.prompts.ids(title + "\n")) if title else []
        if kind == "prev":
            return list(mine[reference.ordinal - 1].token_ids) if reference.ordinal else []
        if kind == "doc":
            found = [t for r in mine[: reference.ordinal] for t in r.token_ids]
            return found[-self.before :] if found else []
        raise SystemExit(f"context {kind!r} is unknown")

    def memory(self, reference: Reference, kind: str, share: str) -> Memory:
        """Of a reference behind its context, its keys where they are without one."""
        context = self.context(reference, kind)
        key = (reference.id, kind if context else "none", share)
        if key not in self._made:
            self._made[key] = self._encode(reference, context, share)
        return self._made[key]

    def _encode(self, reference: Reference, context: list[int], share: str) -> Memory:
        m3, encoder = self.m3, self.m3.encoder
        mine = encoder.prefix
        if context:
            seen = Seen()
            with attached(m3.model):
                m3.geometry.base(torch.tensor([[*m3.frame.prefix, *context]]), use_cache=False, memory3=seen)
            back = torch.tensor(-len(context))
            encoder.prefix = [
                (rotate(k[0], back, m3.geometry.angles[n]), v[0]) for n, (_, k, v, _) in sorted(seen.layers.items())
            ]
        try:
            [[made]] = self._cut([reference], [share])
        finally:
            encoder.prefix = mine
        return made

    def _cut(self, references: Sequence[Reference], shares: Sequence[str]) -> list[list[Memory]]:
        """Of every share a list of memories, all of one pass."""
        m3, encoder = self.m3, self.m3.encoder
        parsed = [_Share.parse(share) for share in shares]
        scorers = list(dict.fromkeys(share.by for share in parsed if share.amount))
        weighs = any(share.bias for share in parsed)
        dense = encoder._dense(references, [self._scorer(name) for name in scorers], weighs=weighs)
        valid = (torch.arange(dense.keys.shape[3]) < dense.lengths[:, None])[:, None, None, :]
        found = []
        for share in parsed:
            if not share.amount:
                kept = valid.expand(dense.keys.shape[:-1])
            else:
                budget, mine = Budget("adaptive", share.amount), dense.scores[scorers.index(share.by)]
                kept = choose(mine, dense.lengths, budget, m3.config.reference_length)
            biases = fitted_biases(dense.products, kept) if share.bias and dense.products is not None else None
            made = cut(dense.keys, dense.values, kept, torch.float16, biases=biases)
            made = [replace(m, tokens=np.asarray(r.token_ids, np.uint32)) for m, r in zip(made, references, strict=True)]
            if share.packed:
                if self.codec is None:
                    raise SystemExit("packed arms want --codebook")
                records = [bytearray(record) for record in self.codec.encode_many(made)]
                unpacked = self.codec.decode(records)
                made = [replace(m, tokens=old.tokens) for m, old in zip(unpacked, made, strict=True)]
            found.append(made)
        return found

    def _scorer(self, name: str) -> Selector:
        if name == "group":
            return Group()
        fitted = self.m3.fitted(name or self.m3.config.selector)
        return selector(name or self.m3.config.selector, fitted.by_layer if fitted else None)

    def fill(self, arms: Sequence[str]) -> None:
        """Memories without a context, for all arms at once."""
        shares = list(dict.fromkeys(arm.split()[2] for arm in arms if arm.startswith("none ")))
        todo = sorted({r for item in self.items for r in item["reads"]}, key=lambda n: len(self.references[n].token_ids))
        started = time.perf_counter()
        for start in range(0, len(todo) if shares else 0, self.batch):
            part = todo[start : start + self.batch]
            for share, some in zip(shares, self._cut([self.references[n] for n in part], shares), strict=True):
                for name, made in zip(part, some, strict=True):
                    self._made[name, "none", share] = made
        say(f"  {len(todo)} references encoded in {time.perf_counter() - started:.0f} s")

    def near(self, item: dict[str, Any], gap: float) -> list[str]:
        """References of an item within ``gap`` of the best one, most similar first."""
        scores = item["scores"]
        return [name for name in scores if scores[name] >= max(scores.values()) - gap]

    def _lowered(
        self, read: list[list[str]], memories: dict[str, Memory], factor: float, by_rank: bool
    ) -> tuple[Any, Any, Any]:
        """Under names of their own, memories whose logits are lowered by what they lack to the best one."""
        ids, made, named = [], {}, {}
        for n, (item, names) in enumerate(zip(self.items, read, strict=True)):
            scores = item["scores"]
            for name in names:
                memory, alias = memories[name], f"{name}@{n}"
                lacking = list(scores).index(name) if by_rank else max(scores.values()) - scores[name]
                own = torch.zeros(len(memory.keys)) if memory.biases is None else memory.biases
                made[alias], named[alias] = replace(memory, biases=own - factor * lacking), self.references[name]
            ids.append([f"{name}@{n}" for name in names])
        return ids, made, named

    def ordered(self, reads: Sequence[str], order: str) -> list[str]:
        """Nearest to the question first."""
        if order in ("best", "far"):
            return list(reads) if order == "best" else list(reads)[::-1]
        documents = list(dict.fromkeys(self.references[name].document_id for name in reads))
        return sorted(reads, key=lambda n: (documents.index(self.references[n].document_id), -self.references[n].ordinal))

    def arm(self, name: str, generate: bool) -> dict[str, Any]:
        """Figures of every question, and how many pairs were read on average."""
        words = name.split()
        mode, temperature = ("none" if name == "nothing" else "text" if words[0] == "text" else "memory"), 1.0
        read: list[list[str]] = [[] for _ in self.items]
        bank: Any = None
        pairs, config = 0.0, self.m3.config
        options = dict(word.split("=") for word in words if re.match(r"[a-z]+=", word))
        reads = [self.near(i, float(options["gap"])) if "gap" in options else i["reads"] for i in self.items]
        if mode == "text":
            order = "doc" if "doc" in words else "best"
            read = [self.ordered(ids, order) for ids in reads]
            if order == "doc" or "near" in words:  # the best one next to the question, as memories lie
                read = [ids[::-1] for ids in read]
            bank = _Source({}, self.references)
        if mode == "memory":
            context, order, share, *rest = words
            for word in rest:
                if word.startswith("T="):
                    temperature = float(word.removeprefix("T="))
            read = [self.ordered(ids, order) for ids in reads]
            distinct = sorted({r for ids in read for r in ids})
            memories = {r: self.memory(self.references[r], context, share) for r in distinct}
            if temperature != 1:
                memories = {r: replace(m, keys=m.keys / temperature) for r, m in memories.items()}
            config = replace(config, arrangement="tight" if "tight" in rest else "row", rank_discount=0.0)
            named = self.references
            if "prior" in options or "rank" in options:
                by_rank = "rank" in options
                factor = float(options["rank" if by_rank else "prior"])
                read, memories, named = self._lowered(read, memories, factor, by_rank)
            bank = _Source(memories, named)
            pairs = float(np.mean([m.counts.sum() for m in memories.values()]))
        prompts, after = self.m3.prompts, max(NEW, *map(len, self.wanted))
        rows = [
            prompts.row(prompts.ids(i["question"]), mode, ids, bank, after=after)
            for i, ids in zip(self.items, read, strict=True)
        ]
        self.m3.encoder.config = config
        found = figures(self.m3, rows, self.items, self.wanted, bank if mode == "memory" else None, self.batch, generate)
        return {"figures": found, "pairs": pairs}


@torch.no_grad()
def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--label", required=True)
    parser.add_argument("--data", required=True, help="folders of sets, with a comma between")
    parser.add_argument("--arms", required=True, help="with a semicolon between")
    parser.add_argument("--generate", action="store_true", help="answers, too")
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--before", type=int, default=384)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--codebook", default="", help="file, as `memory3 calibrate` keeps it")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--out", required=True)
    parser.add_argument("--cache", default=str(Path.home() / ".cache/memory3-measure/several"))
    given = parser.parse_args()
    out, arms = Path(given.out), [arm.strip() for arm in given.arms.split(";") if arm.strip()]
    m3 = Memory3.from_pretrained(*([given.model] if given.model else []), dtype=given.dtype or None)
    if given.temperature:
        m3.config = replace(m3.config, memory_temperature=given.temperature)
        m3.encoder.config = m3.config
    codec: Codec | None = None
    if given.codebook:
        codec = CodedCodec(Codebook.of(Path(given.codebook).read_bytes(), given.codebook)).with_vectors(m3.token_vectors)
    for folder in map(Path, given.data.split(",")):
        kept = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        mark = {
            "model": given.label,
            "set": folder.name,
            "questions": given.questions,
            "seed": given.seed,
            "T": given.temperature,
        } | ({"split": "test"} if given.split == "test" else {})
        done = {
            row["arm"]: row
            for row in kept
            if all(row.get(key) == value for key, value in mark.items()) and row.get("split", "dev") == given.split
        }
        todo = [a for a in arms if a not in done or (given.generate and "contains" not in done[a]["figures"])]
        if not todo:
            continue
        bench = Several(
            m3, folder, Path(given.cache), given.questions, given.seed, given.batch, given.before, given.split, codec
        )
        reads = np.mean([len(i["reads"]) for i in bench.items])
        held = np.mean([i["holds"] for i in bench.items])
        say(f"{given.label}, {folder.name}: {len(bench.items)} questions, {reads:.2f} references, {held:.0%} hold the answer")
        bench.fill(todo)
        for arm in todo:
            started = time.perf_counter()
            row = {**mark, "arm": arm, **bench.arm(arm, given.generate)}
            row |= summary(
                row["figures"], {n: done[n]["figures"] for n in ("text", "none best all") if n in done and n != arm}
            )
            done[arm] = row
            with out.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            shown = " ".join(f"{m} {row[m]['mean']:.3f}" for m in ("nll", "contains", "f1") if m in row)
            beside = row["nll"].get("minus none best all", row["nll"].get("minus text"))
            if beside:
                shown += " ({:+.3f} [{:+.3f}, {:+.3f}])".format(beside["mean"], *beside["interval"])
            say(f"  {arm}: {shown}; {row['pairs']:.0f} pairs; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
