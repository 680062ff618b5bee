"""Where lies what was fitted to a model or measured of it: in the cache folder, and for the default model beside this file,
as it comes with memory3. Knows no content.

Everything is kept by a fingerprint, and a fingerprint is of one number format. Where something is kept, the fingerprints that
the same weights have in other number formats are kept as well, so that they find it:

    formats/<fingerprint>       the fingerprint under which things are kept, 32 hex digits
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from memory3.files import read_bounded, write_atomically
from memory3.models.catalogue import cache_dir

__all__ = ["calibrated", "keep_formats", "kept_files", "kept_under", "own_calibrated"]

_SHIPPED = Path(__file__).parent / "calibrated"
_FORMATS = "formats"
_FINGERPRINT = re.compile(r"[0-9a-f]{32}", re.ASCII)


def own_calibrated(*parts: str) -> Path:
    """The place of a file of this user's in the cache folder, whether it exists or not."""
    return cache_dir().joinpath(*parts)


def calibrated(*parts: str) -> Path | None:
    """The file as this user fitted it, or else as it was shipped; None: there is none."""
    return next((path for path in (own_calibrated(*parts), _SHIPPED.joinpath(*parts)) if path.is_file()), None)


def kept_files(*parts: str) -> Iterator[Path]:
    """All JSON files of a folder, this user's first, in order of names.

    Args:
        parts: of the folder.
    """
    for folder in (own_calibrated(*parts), _SHIPPED.joinpath(*parts)):
        yield from sorted(folder.glob("*.json"))


def kept_under(fingerprint: str) -> tuple[str, ...]:
    """Fingerprints under which something may be kept that serves this one: itself, and that of the same weights in another
    number format. The first that has it is taken. A file that holds no fingerprint counts as absent.

    Args:
        fingerprint: 32 hex digits, of a model or of its memories.
    """
    found = [fingerprint]
    if _FINGERPRINT.fullmatch(fingerprint):
        for path in (own_calibrated(_FORMATS, fingerprint), _SHIPPED / _FORMATS / fingerprint):
            try:
                said = read_bounded(path, 64).decode("ascii", "replace").strip()
            except OSError:
                continue
            if _FINGERPRINT.fullmatch(said) and said not in found:
                found.append(said)
    return tuple(found)


def keep_formats(fingerprint: str, others: Iterable[str]) -> None:
    """Note that what is kept under a fingerprint serves others: those of the same weights in other number formats.

    Args:
        fingerprint: under which things are kept.
        others: fingerprints that it serves.
    """
    for other in others:
        path = own_calibrated(_FORMATS, other)
        if other != fingerprint:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, fingerprint + "\n")
