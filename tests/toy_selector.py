"""A new selector in one file: tokens with long values first. What `CONTRIBUTING.md` shows; not in the package."""

from __future__ import annotations

from typing import ClassVar

from memory3.encode.selectors import Selector, register


@register
class Norm(Selector):
    name: ClassVar[str] = "norm"
    help: ClassVar[str] = "tokens with long values"

    @classmethod
    def flops(cls, tokens, width):
        return 2 * tokens * width

    def score(self, view):
        return view.value.float().norm(dim=-1)
