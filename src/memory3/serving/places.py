"""`Places`: how many of something go on at once, of all tenants together and of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from memory3.serving.errors import RETRY_AFTER, Refused

__all__ = ["Places"]


class Places:
    """Counts who is at it. For one event loop."""

    def __init__(self, what: str, most: int, each: int) -> None:
        """
        Args:
            what: they do, for messages, such as ``"uploads are coming in"``.
            most: places of all tenants together.
            each: places of one tenant.
        """
        self._what = what
        self._most = most
        self._each = each
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, tenant: str) -> Iterator[None]:
        """A place of a tenant, until the context ends.

        Raises:
            Refused: 429, this tenant or all together have as many as may be.
        """
        mine = self._taken[tenant]
        if mine >= self._each or self._taken.total() >= self._most:
            # How many others there are is not told: it would be of other tenants.
            said = f"{mine} {self._what} with this key" if mine >= self._each else f"As many {self._what} as may"
            again = {"Retry-After": str(RETRY_AFTER)}
            message = f"{said}: send this one again in a moment."
            raise Refused(429, message, kind="rate_limit_error", code="busy", headers=again)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
