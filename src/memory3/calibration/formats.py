"""What is kept for a model serves the same weights in other number formats."""

from __future__ import annotations

from memory3.llm import Memory3
from memory3.models.calibrated import keep_formats

__all__ = ["serve_formats"]


def serve_formats(m3: Memory3) -> None:
    """Note under which fingerprints these weights go in other number formats, so that what is kept for this model, of its
    memories or of the whole of it, is found by them.

    Args:
        m3: with the settings for which something was kept.
    """
    for whole_model, memories in m3.in_other_formats():
        keep_formats(m3.whole_model, [whole_model])
        keep_formats(m3.fingerprint, [memories])
