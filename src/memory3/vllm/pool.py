"""`Pool`: decoded memories on a worker's device, bounded in bytes, each kept once however many requests read it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from memory3.errors import RecallError
from memory3.serving.rounds import together
from memory3.types import Memory
from memory3.vllm.step import Name, Packed

__all__ = ["Pool"]


class Pool:
    """Memories by name. What a running request reads stays; of the rest, what was read least recently goes first.

    Attributes:
        bytes: that its memories take.
        decoded: how many records were decoded so far.
    """

    def __init__(self, capacity: int, decode: Callable[[Sequence[Packed]], Mapping[Name, Memory]]) -> None:
        """
        Args:
            capacity: bytes to keep. What running requests read is kept beyond it.
            decode: packed memories, by name.
        """
        self.bytes = 0
        self.decoded = 0
        self._capacity = capacity
        self._decode = decode
        self._kept: OrderedDict[Name, Memory] = OrderedDict()
        self._reads: dict[str, tuple[Name, ...]] = {}
        self._readers: dict[Name, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, packed: Sequence[Packed]) -> dict[Name, Exception]:
        """Decode memories that are not there yet.

        Returns:
            those that cannot be decoded, and why: nothing is raised, since that would end the engine for all requests.
        """
        new: dict[Name, Packed] = {}
        for one in packed:
            if one.name in self._kept:
                self._kept.move_to_end(one.name)
            else:
                new[one.name] = one
        failed: dict[Name, Exception] = {}

        def decode(some: Sequence[Packed]) -> None:
            for name, memory in self._decode(some).items():
                self._kept[name] = memory
                self.bytes += memory.nbytes
            self.decoded += len(some)

        together(list(new.values()), lambda one: None, decode, lambda one, error: failed.update({one.name: error}))
        return failed

    def update(self, reads: Mapping[str, tuple[Name, ...]], ended: Sequence[str]) -> None:
        """What requests read from now on, and which have ended. Then what nobody reads goes, as far as there is no room."""
        for request in ended:
            self._release(self._reads.pop(request, ()))
        for request, names in reads.items():
            before = self._reads.get(request, ())
            self._reads[request] = names
            for name in names:
                self._readers[name] = self._readers.get(name, 0) + 1
            self._release(before)
        if self.bytes <= self._capacity:
            return
        for name in list(self._kept):
            if self.bytes <= self._capacity:
                break
            if name not in self._readers:
                self.bytes -= self._kept.pop(name).nbytes

    def _release(self, names: Sequence[Name]) -> None:
        for name in names:
            left = self._readers[name] - 1
            if left:
                self._readers[name] = left
            else:
                del self._readers[name]

    def get(self, names: Sequence[Name]) -> dict[Name, Memory]:
        """Memories by name.

        Raises:
            RecallError: one was not sent to this worker.
        """
        missing = next((name for name in names if name not in self._kept), None)
        if missing is not None:
            raise RecallError(f"memory {missing[2]!r} of bank {missing[0]!r} was not sent to this worker")
        return {name: self._kept[name] for name in names}
