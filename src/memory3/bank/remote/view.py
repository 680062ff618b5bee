"""`RemoteView`: one version of a bank of another machine, to search and to read from, as `memory3.bank.view.BankView` is of a
folder's.

A search brings the memories of what it finds with it, except those that are here already: one request, one answer. What
is here is not asked for again: a version does not change.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from memory3.bank.ahead import Ahead
from memory3.bank.format.manifest import BankManifest
from memory3.bank.format.tags import Scalar
from memory3.bank.reader import MemoryReader
from memory3.bank.record import MemoryRecord
from memory3.bank.remote.about import About
from memory3.bank.remote.connection import Connection
from memory3.bank.remote.frames import MOST_HEAD, unpack
from memory3.bank.remote.items import hits_in
from memory3.bank.remote.kept import Item, ItemShape, Kept
from memory3.bank.remote.limits import MOST_HITS, MOST_IDS, MOST_QUERIES, MOST_QUERY, MOST_SENT
from memory3.bank.reports import Hit
from memory3.bank.tiers import Tiers
from memory3.bank.where import Where, alternatives
from memory3.codec import Codec
from memory3.errors import BankCorrupt, BankUnreachable, InputError
from memory3.files import parse_json
from memory3.types import Memory, Reference, plain, whole

if TYPE_CHECKING:
    import torch

__all__ = ["RemoteView"]

T = TypeVar("T")
#: Answers that came damaged are asked for again, so often in all.
_TRIES = 3
#: A gap that leaves no hit out.
EVERYTHING = 2.0


class RemoteView:
    """Made by `RemoteBank.pin`; safe to share between threads.

    Every method raises `BankChanged` once the server has dropped the version, and `BankUnreachable` where the server does
    not answer and what is wanted is not here.

    Attributes:
        about: which version, and what the bank says about itself.
    """

    def __init__(
        self,
        about: About,
        *,
        connection: Connection,
        kept: Kept,
        shape: ItemShape,
        reader: MemoryReader,
        gap: float,
        tiers: Tiers,
        guesses: Ahead,
    ) -> None:
        """Called by `RemoteBank`.

        Args:
            about: the version.
            connection: to the server.
            kept: what is here of that version.
            shape: of the bank's items.
            reader: decodes its memories.
            gap: memories are sent along of hits whose cosine is within this of the best one's. Where others are read, too,
                those of all hits.
            tiers: of the bank.
            guesses: the thread that fetches ahead.
        """
        self.about = about
        self._connection = connection
        self._kept = kept
        self._shape = shape
        self._reader = reader
        self._gap = gap
        self._tiers = tiers
        self._guesses = guesses
        self._left_out: set[str] = set()  # hits of the last search whose memories did not come along

    @property
    def manifest(self) -> BankManifest:
        """What this version says about itself."""
        return self.about.manifest

    @property
    def version(self) -> str:
        """32 hex digits, equal only where every row is equal."""
        return self.about.version

    @property
    def codec(self) -> Codec:
        """What reads the records of this version."""
        return self._reader.codec

    def search(self, queries: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """The ``k`` nearest references of each query, best first, as the server finds them.

        Args:
            queries: texts; the server embeds them.
            k: hits per query at most.
            where: metadata that references must have; None: any.

        Raises:
            InputError: more hits are asked for than a server gives, or with a query that is too long.
        """
        if k <= 0 or not len(self) or not queries:
            return [[] for _ in queries]
        if k > MOST_HITS:
            raise InputError(f"{self._connection.url}: a server gives {MOST_HITS:,} hits at most, {k:,} were asked for")
        if long := next((query for query in queries if len(query) > MOST_QUERY), None):
            raise InputError(f"{self._connection.url}: a query has {MOST_QUERY:,} characters at most, one has {len(long):,}")
        condition = _sent(where)
        key = json.dumps(condition, sort_keys=True)
        self._guesses.settle()
        with self._guesses.request():
            return self._search(list(queries), k, condition, key)

    def memories(
        self, reference_ids: Sequence[str], *, use_cache: bool = True, device: torch.device | str | None = None
    ) -> list[Memory]:
        """The memories of references, in order.

        Args:
            reference_ids: of this version.
            use_cache: keep what is decoded, and take from device and RAM what is there.
            device: where keys and values are made; None: the CPU.

        Raises:
            BankCorrupt: a memory cannot be decoded.
        """
        try:
            # Without the cache, too, what came along with the search is not asked for again.
            fetch = self._fetch if use_cache else self.records
            return self._reader.memories(reference_ids, fetch, device=device, use_cache=use_cache)
        except BankCorrupt:
            self._kept.drop(reference_ids)  # what the server sent was kept: the next time it is asked for anew
            raise

    def records(self, reference_ids: Sequence[str]) -> list[MemoryRecord]:
        """The packed memories of references, in order."""
        return self._reader.records(reference_ids, self._fetch)

    def references(self, reference_ids: Sequence[str]) -> list[Reference]:
        """References with their texts, in order."""
        found = {id_: reference for id_ in set(reference_ids) if (reference := self._kept.text(id_)) is not None}
        missing = [id_ for id_ in dict.fromkeys(reference_ids) if id_ not in found]
        found |= {item.reference.id: item.reference for item in self._items(missing, with_record=False)}
        return [found[id_] for id_ in reference_ids]

    def count(self, where: Where | None = None) -> int:
        """How many references have the metadata ``where``; all without it."""
        if not where:
            return len(self)
        condition = _sent(where)
        key = json.dumps(["count", condition], sort_keys=True)

        def read(body: bytes) -> int:
            return whole("a count", _object(body).get("count"), 0, len(self))

        return int(self._fact(key, lambda: self._exchange("/count", {"where": condition}, read, 1 << 16)))

    def metadata(self) -> dict[str, list[Scalar]]:
        """Every metadata key of this version with its values."""

        def read(body: bytes) -> dict[str, Any]:
            found = _object(body).get("metadata")
            if not isinstance(found, dict) or not all(_is_flat(values) for values in found.values()):
                raise ValueError("metadata are not names with lists of texts or numbers")
            return found

        found: dict[str, list[Scalar]] = self._fact("metadata", lambda: self._exchange("/metadata", {}, read, MOST_HEAD))
        return found

    def prefetch(self, reference_ids: Sequence[str]) -> None:
        """Fetch packed memories into RAM beside what this thread does, as long as nobody waits for the bank. Returns at once.

        Args:
            reference_ids: of this version, the likeliest first; those that are in RAM cost nothing.
        """

        def bring(some: list[str]) -> None:
            there = self._kept.stored(some, counted=False)
            self._tiers.count(ahead=len(some))
            self._items([id_ for id_ in some if id_ not in there], with_record=True)

        missing = [id_ for id_ in reference_ids if not self._tiers.has(self.about.version, id_)]
        self._guesses.names(missing, self._shape.record_bytes, bring)

    def ahead(self, queries: Sequence[str], k: int, where: Where | None = None) -> None:
        """Fetch what a search like this would find beside what this thread does: a guess of what will be read next, with as
        many that rank below.

        Args:
            queries, k, where: as in `search`.
        """
        condition, key, most = _sent(where), json.dumps(_sent(where), sort_keys=True), min(2 * k, MOST_HITS)
        self._guesses.beside(lambda: self._search(list(queries), most, condition, key))

    def remember(self) -> None:
        """Write down which memories are here, for the next process."""
        self._kept.remember()

    def __len__(self) -> int:
        return self.about.manifest.references

    # ---- what is here, and what the server is asked for -------------------------------------------------------------------

    def _search(self, queries: list[str], k: int, where: dict[str, Any], key: str) -> list[list[Hit]]:
        unique = list(dict.fromkeys(queries))
        found = {query: hits for query in unique if (hits := self._kept.answer(query, k, key)) is not None}
        missing = [query for query in unique if query not in found]
        for start in range(0, len(missing), MOST_QUERIES):
            part = missing[start : start + MOST_QUERIES]
            answers = dict(zip(part, self._search_there(part, k, where), strict=True))
            self._kept.put_answers(answers, k, key)
            found |= answers
        return [found[query] for query in queries]

    def _search_there(self, queries: Sequence[str], k: int, where: dict[str, Any]) -> list[list[Hit]]:
        marks = self._kept.marks()
        body = {
            "queries": list(queries),
            "k": k,
            "where": where,
            "gap": self._gap,
            "have": base64.b64encode(struct.pack(f"<{len(marks)}I", *marks)).decode(),
        }

        def read(data: bytes) -> tuple[list[list[Hit]], list[Item]]:
            head, items = self._message(data)
            hits = hits_in(head.get("hits"), len(queries), k)
            names = {hit.reference_id for each in hits for hit in each}
            if any(item.reference.id not in names for item in items):
                raise ValueError("there are memories of what was not found")
            return hits, items

        try:
            hits, items = self._exchange("/search", body, read, MOST_HEAD + MOST_SENT)
        except BankUnreachable as error:
            raise BankUnreachable(
                f"{error}. Searches that were made before are answered from the cache of this machine; this one was not: "
                f"{queries[0]!r:.80}"
            ) from error
        self._kept.put(items)
        self._tiers.count(ahead=len(items))  # they came along
        best = {hit.reference_id for each in hits for hit in each if hit.score >= each[0].score - self._gap}
        self._left_out = {hit.reference_id for each in hits for hit in each} - best
        return hits

    def _fetch(self, reference_ids: list[str]) -> list[MemoryRecord]:
        """What is neither on the device nor in RAM."""
        if not self._left_out.isdisjoint(reference_ids):
            self._gap = EVERYTHING  # whoever reads here wants all that is found
        with self._guesses.request():
            found = self._kept.stored(reference_ids)
            missing = [id_ for id_ in reference_ids if id_ not in found]
            self._tiers.count(bank=len(missing))
            for item in self._items(missing, with_record=True):
                assert item.record is not None
                found[item.reference.id] = item.record
            return [found[id_] for id_ in reference_ids]

    def _items(self, reference_ids: Sequence[str], *, with_record: bool) -> list[Item]:
        """From the server, to be kept here."""
        found: list[Item] = []
        most = max(1, min(MOST_IDS, MOST_SENT // max(1, self._shape.record_bytes))) if with_record else MOST_IDS
        for start in range(0, len(reference_ids), most):
            items = self._items_there(list(reference_ids[start : start + most]), with_record)
            self._kept.put(items)
            found += items
        return found

    def _items_there(self, reference_ids: list[str], with_record: bool) -> list[Item]:
        def read(data: bytes) -> list[Item]:
            _, items = self._message(data)
            if [item.reference.id for item in items] != reference_ids:
                raise ValueError("it is of other references than were asked for")
            if any((item.record is not None) != with_record for item in items):
                raise ValueError("memories are missing, or were not asked for")
            return items

        most = MOST_HEAD + len(reference_ids) * self._shape.record_bytes * with_record
        path = "/records" if with_record else "/references"
        try:
            return self._exchange(path, {"ids": reference_ids}, read, most)
        except BankUnreachable as error:
            raise BankUnreachable(
                f"{error}. {len(reference_ids)} references are not in the cache of this machine, such as "
                f"{reference_ids[0]!r:.80}"
            ) from error

    def _message(self, data: bytes) -> tuple[dict[str, Any], list[Item]]:
        head, parts = unpack(data, self._shape.record_bytes)
        if head.get("version") != self.about.version:
            raise ValueError("it is of another version than was asked for")
        return head, self._shape.items(head.get("items"), parts)

    def _exchange(self, path: str, body: Mapping[str, Any], read: Callable[[bytes], T], most: int) -> T:
        """What ``read`` makes of the server's answer. One that is damaged is asked for again."""
        for left in reversed(range(_TRIES)):
            reply = self._connection.ask(path, body={"version": self.about.version, **body}, most=most)
            try:
                return read(reply.body)
            except (ValueError, RecursionError) as error:
                if not left:
                    raise BankCorrupt(
                        f"{self._connection.url}{path}: the server's answer cannot be used ({str(error)[:200]!r}), "
                        f"{_TRIES} times: the connection damages what it carries, or this is no server of memory3"
                    ) from error
        raise AssertionError("unreachable")

    def _fact(self, name: str, ask: Callable[[], Any]) -> Any:
        found = self._kept.fact(name)
        if found is None:
            found = ask()
            self._kept.put_fact(name, found)
        return found


def _sent(where: Where | None) -> dict[str, Any]:
    """A filter of JSON's kinds. Raises InputError where it is none."""
    if not where:
        return {}
    alternatives(where)  # looks at every name and value
    return {
        str(plain(key)): [plain(one) for one in value] if isinstance(value, list | tuple) else plain(value)
        for key, value in where.items()
    }


def _object(body: bytes) -> dict[str, Any]:
    found = parse_json(body)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _is_flat(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str | int | float) for value in values)
