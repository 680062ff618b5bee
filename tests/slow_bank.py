"""A bank that takes its time."""

from __future__ import annotations


class Slow:
    """A version of a bank in which a search waits for a gate."""

    def __init__(self, view, gate):
        self.view, self.gate = view, gate

    def __getattr__(self, name):
        return getattr(self.view, name)

    def search(self, *arguments, **options):
        assert self.gate.wait(60)
        return self.view.search(*arguments, **options)
