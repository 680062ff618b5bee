"""What is known of vector stores and of their files, as plain values, and as the state files that a restart finds.

<tenant>/stores/vs_<hex>/store.json        what is known of it: written last when it is made
<tenant>/stores/vs_<hex>/files/*.json      a file of it, and how far it is: what is in progress is the queue of the encoder
<tenant>/stores/vs_<hex>/batches/*.json    files that were added together
<tenant>/stores/vs_<hex>/bank/             the bank
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory3.files import read_json, remove
from memory3.serving.data_folder import STATE_BYTES, is_id

__all__ = ["Batch", "Key", "Member", "Scalar", "Store", "copy_of", "found_stores"]

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Member:
    """A file of a vector store.

    Attributes:
        file_id, filename: of it.
        suffix: that tells our readers its format.
        created: when it was added, nanoseconds since 1970.
        attributes: to filter on.
        status: ``"in_progress"``, ``"completed"``, ``"failed"``, ``"cancelled"``, or ``"going"``: it is being removed.
        usage: bytes of its memories.
        error: why it failed, as (code, message); empty where it did not.
    """

    file_id: str
    filename: str
    suffix: str
    created: int
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    status: str = "in_progress"
    usage: int = 0
    error: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Files that were added together.

    Attributes:
        id: ours.
        created: nanoseconds since 1970.
        file_ids: of its files.
    """

    id: str
    created: int
    file_ids: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """Where a store is.

    Attributes:
        folder: name of the tenant's folder.
        store: id of the store.
    """

    folder: str
    store: str


@dataclass
class Store:
    """A vector store.

    Attributes:
        id: ours.
        created: nanoseconds since 1970.
        name: the client's.
        metadata: the client's.
        going: it is being deleted.
        used: when it was last searched or changed, seconds since 1970; forgotten when the server ends.
        members: its files by id.
        batches: by id.
    """

    id: str
    created: int
    name: str
    metadata: Mapping[str, str]
    going: bool = False
    used: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Any]:
        """What its state file says."""
        return {"id": self.id, "created": self.created, "name": self.name, "metadata": self.metadata, "going": self.going}


def copy_of(store: Store) -> Store:
    """A copy that does not change when the store does."""
    return dataclasses.replace(store, members=dict(store.members), batches=dict(store.batches))


def found_stores(folder: Path) -> dict[str, Store]:
    """The stores that are whole. One whose making was interrupted is removed."""
    found: dict[str, Store] = {}
    for place in folder.iterdir():
        if not is_id("vs_", place.name):
            continue
        if not (place / "store.json").is_file():
            remove(place)
            continue
        store = Store(**read_json(place / "store.json", STATE_BYTES))
        found[store.id] = store
        if store.going:
            continue
        for path in (place / "files").glob("file-*.json"):
            told = read_json(path, STATE_BYTES)
            member = Member(**{**told, "error": tuple(told["error"])})
            store.members[member.file_id] = member
        for path in (place / "batches").glob("vsfb_*.json"):
            told = read_json(path, STATE_BYTES)
            store.batches[told["id"]] = Batch(told["id"], told["created"], tuple(told["file_ids"]))
        store.used = store.created // 10**9
        for part in (place / "files", place / "batches"):
            for path in part.glob(".*"):  # half written when the server was killed
                remove(path)
    return found
