"""The main text of a page, without its menus, by trafilatura in a process of its own.

A page that hangs or kills it is one page lost.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.extractors.trafilatura import Trafilatura

from memory3.preparing.documents import FILTER_REASON, LinesWriter
from memory3.preparing.processes import end_with_parent
from memory3.text.readers.characters import plain
from memory3.text.readers.encoding import clean

__all__ = ["Extraction"]

#: Longer pages are lists of data more often than texts, and parsing one takes a hundred times as much memory.
_LONGEST_PAGE = 8 << 20
#: A page takes a hundredth of a second. So much longer that a busy machine does not decide what is left.
_SECONDS = 60.0


class Extraction(Trafilatura):
    """Documents that are pages get their main text; others pass. A page without one goes."""

    name = "extraction"

    def __init__(self, removed: Path) -> None:
        """
        Args:
            removed: folder for what is removed.
        """
        # deduplicate: what a page gives would depend on the pages that the process has seen
        super().__init__(favour_precision=False, timeout=_SECONDS, deduplicate=False, include_tables=True)
        self._removed = LinesWriter(removed)

    def extract(self, text: str) -> str:
        """The main text of a page, or nothing. Runs in the process beside."""
        end_with_parent()
        logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
        return super().extract(text) or ""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents of a task; of a page, its main text."""
        with contextlib.ExitStack() as stack:
            removed = stack.enter_context(self._removed)
            sandbox: ExtractorSandbox | None = None
            for document in data:
                markup = document.metadata.pop("markup", "")
                reason = None
                if markup:
                    if sandbox is None:
                        sandbox = stack.enter_context(ExtractorSandbox(timeout=self.timeout, warmup_text=""))
                    text, reason = self._main_text(sandbox, markup)
                self.stat_update("total", "forwarded" if reason is None else "dropped")
                if reason is None:
                    if markup:
                        self.stat_update("pages")
                        document.text = text
                    yield document
                else:
                    document.metadata[FILTER_REASON] = reason
                    removed.write(document, rank)

    def _main_text(self, sandbox: ExtractorSandbox, markup: str) -> tuple[str, str | None]:
        """The text, or why there is none."""
        if len(markup) > _LONGEST_PAGE:
            return "", f"page of more than {_LONGEST_PAGE >> 20} MiB"
        try:
            text = plain(clean(sandbox.process_document(markup, self.extract)))
        except TimeoutError:
            return "", f"no main text after {_SECONDS:.0f} s"
        except EOFError:
            return "", "the process died at this page"
        except Exception as error:  # whatever the parser raises at a stranger's page is this page's reason
            return "", f"cannot be parsed ({type(error).__name__})"
        return (text, None) if text.strip() else ("", "no main text")
