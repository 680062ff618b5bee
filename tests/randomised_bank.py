"""Random use of one bank by several readers, writers and models, checked after every step against a slow twin:
dictionaries in RAM.

    python tests/randomised_bank.py SEEDS STEPS          # random steps of one thread, each with the right answer known
    python tests/randomised_bank.py SEEDS SECONDS threads  # readers beside a writer: memory and text must be of one version
    python tests/randomised_bank.py SEEDS FLIPS flips      # flipped bits: what is read is right or refused

Everything is reached through what `Bank` offers in all releases, so that it can be run on an older one to see it find
that one's faults.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from bank_writer import SHAPE, HashingEmbedder, HashingWriter, open_bank

from memory3.bank import Bank, store, upkeep
from memory3.bank.write import pace
from memory3.codec.raw import encode_record
from memory3.errors import FingerprintMismatch, InputError, Memory3Error
from memory3.types import Document, Memory, Reference

NAMES = [f"doc{number}" for number in range(7)]


class Model(HashingWriter):
    """Its memories differ from those of models with another name, as those of real models do."""

    def memory(self, reference: Reference) -> Memory:
        made, factor = super().memory(reference), float(len(self.name))
        return Memory(made.counts, made.positions, made.keys * factor, made.values * factor, made.tokens)


MODELS = (Model(name="one"), Model(name="other"))


class Truth:
    """What a version of the bank holds: documents, and the model whose memories they have."""

    def __init__(self, documents: dict[str, Document], model: Model) -> None:
        self.documents = dict(documents)
        self.model = model
        self.references = {r.id: r for d in documents.values() for r in model.split(d)}

    def record(self, reference_id: str) -> bytes:
        return encode_record(self.model.memory(self.references[reference_id]), SHAPE)


class Interrupted(Exception):
    """Stands for whatever ends a write in the middle."""


class Run:
    """One bank and all that is done to it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.path = folder / "bank"
        self.faults: list[str] = []
        self.done: Counter[str] = Counter()
        self.model = MODELS[0]
        self.documents: dict[str, Document] = {}
        self.truths: dict[tuple[str, int], Truth] = {}
        self.texts = 0
        policy = self.random.choice(["now", "auto"])
        self.readers = [self.open(self.model, write=policy)]
        self.note()

    def open(self, model: Model, **options: Any) -> Bank:
        return open_bank(self.path, model, cache_bytes=self.random.choice([0, 166 * 3, 1 << 20]), **options)

    def note(self) -> None:
        """Remember what the newest version holds."""
        self.truths[self.version(self.open(self.model))] = Truth(self.documents, self.model)

    def version(self, bank: Bank) -> tuple[str, int]:
        return bank._snapshot.name, bank._snapshot.version

    def new_document(self) -> Document:
        self.texts += 1
        words = [f"t{self.texts}w{number}" for number in range(self.random.choice([1, 2, 3, 5, 9, 14]))]
        return Document(self.random.choice(NAMES), " ".join(words), metadata={"n": self.texts})

    # ---- steps -----------------------------------------------------------------------------------------------------------

    def step_write(self) -> None:
        new = {d.id: d for d in (self.new_document() for _ in range(self.random.randrange(1, 5)))}
        prune = self.random.random() < 0.1
        with self.open(self.model) as bank:
            bank.write(list(new.values()), lazy=self.random.choice([True, False, None]), prune=prune)
        self.documents = {**({} if prune else self.documents), **new}

    def step_interrupted_write(self) -> None:
        new = {d.id: d for d in (self.new_document() for _ in range(4))}
        left = self.random.randrange(8)

        def stop(_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interrupted

        with suppress(Interrupted), self.open(self.model) as bank:
            bank.write(list(new.values()), progress=stop)
        with self.open(self.model) as bank:
            self.check_whole(bank, [self.documents, new])
            now = {entry.id: entry.content_hash for entry in bank.documents()}
        both = {d.content_hash: d for d in [*self.documents.values(), *new.values()]}
        self.documents = {id_: both[content_hash] for id_, content_hash in now.items()}

    def step_delete(self) -> None:
        gone = self.random.sample(NAMES, 2)
        with self.open(self.model) as bank:
            bank.delete(gone)
        self.documents = {id_: d for id_, d in self.documents.items() if id_ not in gone}

    def step_compact(self) -> None:
        with self.open(self.model) as bank, grace(self.random.choice([0, 600])):
            bank.compact()

    def step_rebuild(self) -> None:
        if self.random.random() < 0.5:
            self.model = MODELS[1 - MODELS.index(self.model)]
        Bank.rebuild(self.path, self.model, embedder=HashingEmbedder())

    def step_open(self) -> None:
        if len(self.readers) > 4:
            self.readers.pop(self.random.randrange(len(self.readers))).close()
        self.readers.append(self.open(self.model))

    def step_refresh(self) -> None:
        reader = self.random.choice(self.readers)
        try:
            reader.refresh()
        except FingerprintMismatch:
            if reader._m3 is self.model:
                self.faults.append("a reader of the bank's own model was refused")

    def step_read(self) -> None:
        for _ in range(3):
            reader = self.random.choice(self.readers)
            before = self.version(reader)
            known = sorted(self.truths[before].references) or ["doc0#0"]
            ids = self.random.choices([*known, "doc0#0", "doc3#2"], k=self.random.randrange(1, 5))
            self.read(reader, ids, "memories", lambda found, t, i: encode_record(found, SHAPE) == t.record(i))
            self.read(reader, ids, "references", lambda found, t, i: found == t.references[i])

    def read(self, reader: Bank, ids: list[str], what: str, right: Callable[[Any, Truth, str], bool]) -> None:
        self.note()  # the read before may have stored what was cold
        try:
            found = getattr(reader, what)(ids)
        except FingerprintMismatch:
            if reader._m3 is self.model:
                self.faults.append(f"{what} of the bank's own model were refused")
            return
        except InputError:
            found = None
        truth = self.truths[self.version(reader)]  # after the call: it refreshes where the old files are gone
        missing = [id_ for id_ in ids if id_ not in truth.references]
        if found is None or missing:
            if (found is None) != bool(missing):
                self.faults.append(f"{what}: {missing or ids} {'served, though gone' if missing else 'refused, though there'}")
            return
        if truth.model is not reader._m3:
            self.faults.append(f"{what} of a bank of {truth.model.name} by a reader of {reader._m3.name}")
        self.faults += [
            f"{what}: {id_} is not that of its version"
            for id_, one in zip(ids, found, strict=True)
            if not right(one, truth, id_)
        ]
        self.done["checked"] += len(ids)

    def check_whole(self, bank: Bank, versions: list[dict[str, Document]]) -> None:
        """Every document is as in one of these versions, whole, and nothing is damaged."""
        bank.refresh()
        report = bank.verify()
        self.faults += report.problems
        for entry in bank.documents():
            candidates = [v[entry.id] for v in versions if entry.id in v]
            ids = [f"{entry.id}#{ordinal}" for ordinal in range(entry.references)]
            text = "".join(reference.text for reference in bank.references(ids))
            if text not in [d.text for d in candidates]:
                self.faults.append(f"{entry.id} holds {text[:40]!r}, which nobody wrote")

    def go(self, steps: int) -> None:
        names = [name for name in dir(self) if name.startswith("step_")]
        weights = [{"step_read": 8, "step_write": 3, "step_refresh": 2}.get(name, 1) for name in names]
        for _ in range(steps):
            name = self.random.choices(names, weights)[0]
            try:
                getattr(self, name)()
            except Memory3Error as error:
                self.faults.append(f"{name} raised {type(error).__name__}: {error}")
            self.done[name] += 1
            self.note()
            with self.open(self.model) as bank:
                if {e.id: e.content_hash for e in bank.documents()} != {i: d.content_hash for i, d in self.documents.items()}:
                    self.faults.append(f"after {name} the bank has other documents than were written")
            if self.faults:
                return
        with self.open(self.model) as bank:
            self.check_whole(bank, [self.documents])
            truth = Truth(self.documents, self.model)
            for id_ in truth.references:
                if encode_record(bank.memories([id_], use_cache=False)[0], SHAPE) != truth.record(id_):
                    self.faults.append(f"at the end the memory of {id_} is wrong")


@contextmanager
def grace(seconds: float) -> Iterator[None]:
    """How long the files of replaced versions are kept."""
    before = store.GRACE
    for module in (store, upkeep):
        module.GRACE = timedelta(seconds=seconds)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in (store, upkeep):
            module.GRACE = before  # type: ignore[attr-defined]


def steps(seed: int, count: int) -> tuple[list[str], Counter[str]]:
    """Random steps of one thread. Returns the faults found and what was done."""
    before = pace.COMMIT_REFERENCES
    pace.COMMIT_REFERENCES = 6
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(seed, Path(folder))
            run.go(count)
            return run.faults, run.done
    finally:
        pace.COMMIT_REFERENCES = before


def threads(seed: int, seconds: float) -> tuple[list[str], Counter[str]]:
    """Three readers search, read and cite while one writes, refreshes, deletes and compacts."""
    faults: list[str] = []
    done: Counter[str] = Counter()
    model = MODELS[0]
    with tempfile.TemporaryDirectory() as folder:
        bank = open_bank(Path(folder) / "bank", model)

        def version(number: int) -> list[Document]:
            rng = random.Random(f"{seed} {number}")
            return [Document(n, " ".join(f"v{number}{n}w{i}" for i in range(rng.choice([1, 3, 9, 14])))) for n in NAMES]

        bank.write(version(0))
        end = time.monotonic() + seconds

        def write() -> None:
            number, rng = 0, random.Random(seed)
            while time.monotonic() < end:
                number += 1
                bank.write(version(number), lazy=rng.random() < 0.3, wait_seconds=30)
                if rng.random() < 0.3:
                    bank.delete(rng.choice(NAMES), wait_seconds=30)
                done["versions"] += 1

        def read(number: int) -> None:
            rng = random.Random(f"{seed} {number}")
            while time.monotonic() < end:
                view: Any = bank.pin() if hasattr(bank, "pin") else bank
                ids = [hit.reference_id for hit in view.search([f"v1{rng.choice(NAMES)}w0"], 5)[0]]
                memories = view.memories(ids, use_cache=rng.random() < 0.7)
                for reference, memory in zip(view.references(ids), memories, strict=True):
                    done["pairs"] += 1
                    if encode_record(memory, SHAPE) != encode_record(model.memory(reference), SHAPE):
                        faults.append(f"the memory of {reference.id} is not that of its text {reference.text!r}")

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except Exception as error:
                faults.append(f"{type(error).__name__}: {error}")

        jobs = [write, *(lambda n=n: read(n) for n in range(3))]
        workers = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return faults, done


def flips(seed: int, count: int) -> tuple[list[str], Counter[str]]:
    """Flip one to three bits of one file of a bank, then read everything, in a process of its own: Lance may end it."""
    faults: list[str] = []
    done: Counter[str] = Counter()
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        with open_bank(whole, MODELS[0]) as bank:
            for part in (FLIPPED[:4], FLIPPED[4:]):
                bank.write(part)
            bank.write([Document("gone", "soon to be deleted")])
            bank.delete("gone")
        context = multiprocessing.get_context("spawn")
        with ProcessPool(context) as pool:
            for number in range(count):
                path = Path(folder) / f"bank{number}"
                shutil.copytree(whole, path)
                file = rng.choice([f for f in sorted(path.rglob("*")) if f.is_file() and f.stat().st_size])
                data = bytearray(file.read_bytes())
                for _ in range(rng.choice([1, 1, 3])):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                file.write_bytes(data)
                outcome, wrong = pool.ask(path)
                done[outcome] += 1
                if wrong:
                    faults.append(f"flip in {file.relative_to(path)}: {wrong}")
                if outcome.startswith(("ended", "unclear")):
                    done[f"{outcome.split(':')[0]} by {file.parent.name}/{file.suffix}"] += 1
                shutil.rmtree(path)
    return faults, done


FLIPPED = [Document(name, " ".join(f"{name}word{i}" for i in range(9))) for name in NAMES]


class ProcessPool:
    """One process that answers `read_whole`, replaced by another when it ends."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._process: Any = None

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()

    def ask(self, path: Path) -> tuple[str, str]:
        """What became of reading a bank, and what was wrong in it."""
        if self._process is None or not self._process.is_alive():
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=answer, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._pipe.send(path)
        try:
            if self._pipe.poll(60):
                return self._pipe.recv()
            self._process.kill()
            return "hangs", "no answer in 60 seconds"
        except EOFError:
            self._process.join()
            return f"ended by signal {-self._process.exitcode}", ""


def answer(pipe: Any) -> None:
    while True:
        pipe.send(read_whole(pipe.recv()))


def read_whole(path: Path) -> tuple[str, str]:
    """Everything a reader may ask of a bank of `FLIPPED`."""
    true = Truth({d.id: d for d in FLIPPED}, MODELS[0])
    outcome = "right"
    try:
        bank = open_bank(path, MODELS[0], create=False)
        found = {f"{entry.id}#{number}" for entry in bank.documents() for number in range(min(entry.references, 99))}
        damaged = not bank.verify().ok
        wrong = [f"lists {id_}" for id_ in found - set(true.references) if not damaged]
        for id_ in true.references:
            try:
                if bank.references([id_])[0] != true.references[id_]:
                    wrong.append(f"text of {id_}")
                if encode_record(bank.memories([id_])[0], SHAPE) != true.record(id_):
                    wrong.append(f"memory of {id_}")
            except Memory3Error:
                outcome = "refused in part"
        if outcome == "refused in part" and not damaged:
            wrong.append("refused, but verify says it is in order")
        return outcome, "; ".join(wrong[:3])
    except Memory3Error as error:
        return f"refused: {type(error).__name__}", ""
    except BaseException as error:
        return f"unclear: {type(error).__name__}", str(error)[:200]


if __name__ == "__main__":
    seeds, length, kind = int(sys.argv[1]), float(sys.argv[2]), (*sys.argv[3:], "steps")[0]
    total: Counter[str] = Counter()
    wrong = 0
    for seed in range(seeds):
        faults, done = (
            threads(seed, length) if kind == "threads" else {"steps": steps, "flips": flips}[kind](seed, int(length))
        )
        total.update(done)
        wrong += bool(faults)
        if faults:
            print(f"seed {seed}: {faults[0][:200]} ({len(faults)} faults)", flush=True)
    print(f"{seeds} seeds, {wrong} with faults, {dict(total)}")
