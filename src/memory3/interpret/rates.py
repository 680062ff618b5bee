"""Rates with their intervals, and how well one number tells two groups apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory3.errors import MissingDependency

__all__ = ["Rate", "separation", "statistics"]


def statistics() -> Any:
    """The module ``scipy.stats`` (extra ``interpret``). MissingDependency: it is not installed."""
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingDependency(str(error.name or "scipy"), "interpret", "looking inside a model") from None
    return stats


@dataclass(frozen=True)
class Rate:
    """How many of some.

    Attributes:
        hits: how many.
        of: of how many, at least one.
    """

    hits: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95%."""
        found = statistics().binomtest(self.hits, self.of).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def to_dict(self) -> dict[str, Any]:
        """Hits, of how many, the rate, and its interval as a list of two."""
        return {"hits": self.hits, "of": self.of, "rate": self.hits / self.of, "interval": list(self.interval)}


def separation(first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """For every number: its mean in both groups, and the AUROC, the chance that one of the first group has the larger one
    (0.5: it tells nothing). Empty without members on both sides.

    Args:
        first, second: numbers by name, the same names in each.
    """
    if not first or not second:
        return {}
    found: dict[str, dict[str, float]] = {}
    for name in first[0]:
        one, other = [each[name] for each in first], [each[name] for each in second]
        auroc = float(statistics().mannwhitneyu(one, other).statistic) / (len(one) * len(other))
        found[name] = {"failures": sum(one) / len(one), "others": sum(other) / len(other), "auroc": auroc}
    return found
