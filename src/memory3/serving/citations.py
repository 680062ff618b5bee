"""Citations as annotations of the OpenAI API: which references of a stretch are cited, and how.

Of the references that a stretch of the answer was read from, those are cited that had the largest share of its attention,
or at least half of that, and three at most. A passage that was put into the prompt is cited for the whole answer: nobody
saw which stretch it was read for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from memory3.serving.job import Cited, Finished
from memory3.serving.jobs import Reading
from memory3.types import Citation

__all__ = ["Citer", "worth_citing"]

#: Part of the largest share.
LEAST = 0.5
MOST = 3


def worth_citing(citations: Sequence[Citation]) -> list[Citation]:
    """Those of a stretch's references that are cited.

    Args:
        citations: largest share first.
    """
    return [one for one in citations[:MOST] if one.share > 0 and one.share >= LEAST * citations[0].share]


@dataclass(frozen=True)
class Citer:
    """Writes the citations of one request.

    Attributes:
        reading: what it reads.
        address: of this server, as the client calls it, with a ``/`` at the end.
    """

    reading: Reading
    address: str

    def url(self, citation: Citation) -> str:
        """Where the passage is: its source, if that is an address; else here, at `memory3.serving.routes.passages`."""
        if is_address(citation.source):
            return citation.source
        served = self.reading.served
        assert served is not None
        return f"{self.address}v1/passages?bank={quote(served.name)}&id={quote(citation.reference_id, safe='')}"

    def url_citations(self, cited: Cited) -> list[dict[str, Any]]:
        """Annotations of a chat message, for one stretch that was ``cited``."""
        return _distinct(self._url_citation, worth_citing(cited.citations), cited.stretch.start, cited.stretch.end)

    def file_citations(self, cited: Cited) -> list[dict[str, Any]]:
        """Annotations of a Responses output, for one stretch that was ``cited``."""
        return _distinct(self._file_citation, worth_citing(cited.citations), cited.stretch.start, cited.stretch.end)

    def url_citations_of_all(self, finished: Finished) -> list[dict[str, Any]]:
        """Annotations for the whole answer that is ``finished``, which was read from passages in its prompt."""
        return _distinct(self._url_citation, self._passages(finished), 0, len(finished.text))

    def file_citations_of_all(self, finished: Finished) -> list[dict[str, Any]]:
        """The same for a Responses output that is ``finished``."""
        return _distinct(self._file_citation, self._passages(finished), 0, len(finished.text))

    def about(self, finished: Finished) -> dict[str, Any]:
        """What OpenAI's answers have no field for, of an answer that is ``finished``: all references with their shares, and
        what it took.
        """
        usage = finished.usage
        return {
            "mode": self.reading.mode,
            "bank": self.reading.served.name if self.reading.served else None,
            "finish": finished.reason,
            "note": finished.note,
            "found": None if finished.presence is None else finished.presence.found,
            "found_score": None if finished.presence is None else round(finished.presence.score, 6),
            "citations": [self._whole(one) for one in finished.citations],
            "shares": finished.shares,
            "recalls": usage.recalls,
            "references": usage.references,
            "bytes_read": usage.bytes_read,
            "first_token_seconds": round(finished.first_token, 6),
            "total_seconds": round(finished.total, 6),
        }

    def _passages(self, finished: Finished) -> list[Citation]:
        return finished.citations if self.reading.mode == "text" and finished.text else []

    def _url_citation(self, citation: Citation, start: int, end: int) -> dict[str, Any]:
        inside = {"url": self.url(citation), "title": title(citation), "start_index": start, "end_index": end}
        return {"type": "url_citation", "url_citation": {**inside, **_more(citation)}}

    def _file_citation(self, citation: Citation, start: int, end: int) -> dict[str, Any]:
        served = self.reading.served
        is_uploaded = served is not None and served.owner is not None
        file_id = citation.document_id.partition("#")[0] if is_uploaded else citation.document_id
        standard = {"type": "file_citation", "file_id": file_id, "filename": title(citation), "index": end}
        return {**standard, "start_index": start, "end_index": end, "url": self.url(citation), **_more(citation)}

    def _whole(self, citation: Citation) -> dict[str, Any]:
        place = {"source": citation.source, "start": citation.start, "end": citation.end, "score": round(citation.score, 6)}
        return {"url": self.url(citation), "title": title(citation), **_more(citation), **place}


def _distinct(
    write: Callable[[Citation, int, int], dict[str, Any]], citations: Sequence[Citation], start: int, end: int
) -> list[dict[str, Any]]:
    """One annotation of a stretch for each place that is cited: of several passages of one place the first."""
    found: dict[str, dict[str, Any]] = {}
    for citation in citations:
        annotation = write(citation, start, end)
        inside = annotation.get("url_citation")
        found.setdefault(inside["url"] if inside else annotation["file_id"], annotation)
    return list(found.values())


def title(citation: Citation) -> str:
    """What a citation is called: the title that its document has, or its source, or its id."""
    named = citation.metadata.get("title")
    return named if isinstance(named, str) and named.strip() else citation.source or citation.document_id


def is_address(source: str) -> bool:
    """Whether a source is one that a browser can open: not a file, and nothing that runs."""
    try:
        parts = urlsplit(source)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _more(citation: Citation) -> dict[str, Any]:
    return {
        "content": citation.text,
        "document_id": citation.document_id,
        "reference_id": citation.reference_id,
        "share": round(citation.share, 6),
    }
