"""`Kept`: what a device has of one version of a bank: references, packed memories, and what searches have found.

In the tiers of the bank (`memory3.bank.tiers`): in RAM what came lately, behind it a disk that others share.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from memory3.bank.disk import DiskCache
from memory3.bank.record import MemoryRecord
from memory3.bank.remote.frames import pack, unpack
from memory3.bank.remote.items import hit_rows, hits_in, mark, record_in, reference_fields, reference_in
from memory3.bank.reports import Hit
from memory3.bank.tiers import Tiers
from memory3.types import Reference

__all__ = ["Item", "ItemShape", "Kept"]

#: Searches whose results are in RAM.
_ANSWERS = 4096
#: Memories that a server is told of, so that it does not send them again.
_MOST_MARKS = 1024


@dataclass(frozen=True)
class Item:
    """A reference, and its packed memory where that came with it."""

    reference: Reference
    record: MemoryRecord | None


@dataclass(frozen=True)
class ItemShape:
    """What items of a bank have in common.

    Attributes:
        codec: name.
        record_bytes: of a packed memory.
        tokens: of a reference at most.
        vocabulary: ids of tokens are below it.
    """

    codec: str
    record_bytes: int
    tokens: int
    vocabulary: int

    def head(self, items: Sequence[Item]) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Items as a message has them: fields, and as many parts; an empty one where there is no memory."""
        fields = [
            {"reference": reference_fields(item.reference), "stored": bool(item.record and item.record.stored_bytes)}
            for item in items
        ]
        return fields, [item.record.data if item.record else b"" for item in items]

    def items(self, fields: Any, parts: Sequence[bytes]) -> list[Item]:
        """The inverse, of fields and parts from anywhere. Raises ValueError."""
        if not isinstance(fields, list) or len(fields) != len(parts):
            raise ValueError("there are not as many memories as references")
        found = []
        for each, part in zip(fields, parts, strict=True):
            if not isinstance(each, Mapping):
                raise ValueError("a reference is no JSON object")
            reference = reference_in(each.get("reference"), self.tokens, self.vocabulary)
            record = record_in(reference, part, self.codec, self.record_bytes, each.get("stored")) if part else None
            found.append(Item(reference, record))
        return found


class Kept:
    """Safe to share between threads."""

    def __init__(self, place: str, version: Hashable, shape: ItemShape, tiers: Tiers, disk: DiskCache) -> None:
        """
        Args:
            place: the bank's address with its version: what is kept is of it alone.
            version: under which the tiers have it in RAM.
            shape: of its items.
            tiers: of the bank.
            disk: shared.
        """
        self._place = place
        self._version = version
        self._shape = shape
        self._tiers = tiers
        self._disk = disk
        self._lock = Lock()
        self._answers = _Recent[str, list[list[Any]]](_ANSWERS)
        self._there: OrderedDict[str, None] = OrderedDict()  # ids whose memories are in RAM or on disk, as far as it is known

    # ---- references and memories -----------------------------------------------------------------------------------------

    def text(self, reference_id: str) -> Reference | None:
        """A reference that is in RAM or on disk; None where it is not."""
        reference = self._tiers.text(self._version, reference_id)
        if reference is not None:
            return reference
        item = self._from_disk("memory", reference_id) or self._from_disk("text", reference_id)
        if item is None:
            return None
        self._keep(item)
        return item.reference

    def stored(self, reference_ids: Iterable[str], *, counted: bool = True) -> dict[str, MemoryRecord]:
        """Those of some packed memories that are on disk, to be in RAM from now on.

        Args:
            reference_ids: that are not in RAM.
            counted: as found on disk, or missed there.
        """
        items = {id_: self._from_disk("memory", id_) for id_ in reference_ids}
        found = {id_: item.record for id_, item in items.items() if item is not None and item.record is not None}
        for item in items.values():
            if item is not None:
                self._keep(item)
        if counted and self._disk.capacity > 0:
            self._tiers.count(disk_hits=len(found), disk_misses=len(items) - len(found))
        return found

    def put(self, items: Iterable[Item]) -> None:
        """Keep what was fetched."""
        files = {}
        for item in items:
            fields, parts = self._shape.head([item])
            kind = "memory" if item.record else "text"
            files[self._key(kind, item.reference.id)] = pack({"items": fields}, parts)
            self._keep(item)
        self._disk.put(files)

    def drop(self, reference_ids: Sequence[str]) -> None:
        """Forget references with their memories."""
        self._tiers.drop(self._version, reference_ids)
        for id_ in reference_ids:
            with self._lock:
                self._there.pop(id_, None)
            for kind in ("memory", "text"):
                self._disk.discard(self._key(kind, id_))

    def marks(self) -> list[int]:
        """Of the memories that are here, those used lately (`memory3.bank.remote.items.mark`)."""
        with self._lock:
            if not self._there:
                self._recollect()
            return [mark(id_) for id_ in self._there]

    def remember(self) -> None:
        """Write down which memories are here, for the next process."""
        with self._lock:
            names = list(self._there)
        if names:
            self._disk.put({self._key("names", ""): json.dumps(names).encode()}, replace=True)

    # ---- what searches have found ----------------------------------------------------------------------------------------

    def answer(self, query: str, k: int, where: str) -> list[Hit] | None:
        """What a search has found before.

        Args:
            query: text.
            k: hits asked for.
            where: the filter as text.
        """
        key = json.dumps([query, k, where])
        with self._lock:
            rows = self._answers.get(key)
        if rows is None:
            data = self._disk.get(self._key("search", key))
            if data is None:
                return None
            try:
                rows = json.loads(data)
                hits_in([rows], 1, k)
            except (ValueError, RecursionError):
                self._disk.discard(self._key("search", key))
                return None
            with self._lock:
                self._answers.put(key, rows)
        return hits_in([rows], 1, k)[0]

    def put_answers(self, answers: Mapping[str, Sequence[Hit]], k: int, where: str) -> None:
        """Keep what a search found.

        Args:
            answers: by query.
            k: hits asked for.
            where: the filter as text.
        """
        rows = {json.dumps([query, k, where]): hit_rows([hits])[0] for query, hits in answers.items()}
        with self._lock:
            for key, row in rows.items():
                self._answers.put(key, row)
        self._disk.put({self._key("search", key): json.dumps(row).encode() for key, row in rows.items()})

    # ---- other facts -----------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """A value that `put_fact` kept; None where there is none."""
        data = self._disk.get(self._key("fact", name))
        try:
            return None if data is None else json.loads(data)
        except (ValueError, RecursionError):
            return None

    def put_fact(self, name: str, value: Any) -> None:
        """Keep a value of JSON's kinds.

        Args:
            name: under which `fact` finds it.
            value: the same for as long as the version is.
        """
        self._disk.put({self._key("fact", name): json.dumps(value).encode()})

    def _keep(self, item: Item) -> None:
        """In RAM."""
        id_ = item.reference.id
        self._tiers.keep_text(self._version, item.reference)
        if item.record is None:
            return
        self._tiers.keep_packed(self._version, item.record)
        with self._lock:
            self._there[id_] = None
            self._there.move_to_end(id_)
            while len(self._there) > _MOST_MARKS:
                self._there.popitem(last=False)

    def _recollect(self) -> None:
        data = self._disk.get(self._key("names", ""))
        try:
            names = json.loads(data) if data else []
        except (ValueError, RecursionError):
            names = []
        self._there.update((name, None) for name in names[-_MOST_MARKS:] if isinstance(name, str))

    def _from_disk(self, kind: str, reference_id: str) -> Item | None:
        key = self._key(kind, reference_id)
        data = self._disk.get(key)
        if data is None:
            return None
        try:
            head, parts = unpack(data, self._shape.record_bytes)
            (item,) = self._shape.items(head.get("items"), parts)
            if item.reference.id != reference_id or (kind == "memory") != (item.record is not None):
                raise ValueError("it is of another reference")
        except (ValueError, RecursionError):
            self._disk.discard(key)
            return None
        return item

    def _key(self, kind: str, name: str) -> str:
        return f"{self._place}\0{kind}\0{name}"


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """A number of values in RAM, least recently used first to go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)
