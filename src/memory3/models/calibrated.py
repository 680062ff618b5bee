"""Where lies what was fitted to a model: in the cache folder, and for the default model beside this file, as it comes
with memory3. Knows no content.
"""

from __future__ import annotations

from pathlib import Path

from memory3.models.catalogue import cache_dir

__all__ = ["calibrated", "own_calibrated"]

_SHIPPED = Path(__file__).parent / "calibrated"


def own_calibrated(*parts: str) -> Path:
    """The place of a file of this user's in the cache folder, whether it exists or not."""
    return cache_dir().joinpath(*parts)


def calibrated(*parts: str) -> Path | None:
    """The file as this user fitted it, or else as it was shipped; None: there is none."""
    return next((path for path in (own_calibrated(*parts), _SHIPPED.joinpath(*parts)) if path.is_file()), None)
