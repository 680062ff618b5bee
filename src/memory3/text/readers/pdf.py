"""PDF files: the text layer, pages separated by an empty line."""

from __future__ import annotations

import io
from collections.abc import Iterator

from pypdf import PasswordType, PdfReader
from pypdf.errors import DependencyError

from memory3.errors import ReadError
from memory3.text.readers.source import Found, SourceFile

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".pdf",)


def read(file: SourceFile) -> Iterator[Found]:
    """One text per file. Files with an empty password are opened with it."""
    content = file.read()
    if not content:
        return
    try:
        pdf = PdfReader(io.BytesIO(content))
        if pdf.is_encrypted and pdf.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise file.error("is encrypted: save a copy without a password, for example with `qpdf --decrypt`")
        text = "\n\n".join(page.extract_text().strip() for page in pdf.pages).strip()
        title = str(pdf.metadata.title or "").strip() if pdf.metadata else ""
    except DependencyError as error:
        raise file.error(f"is encrypted in a way that needs another package ({error}): save a decrypted copy") from None
    except ReadError:
        raise
    except Exception as error:  # on damaged files pypdf raises whatever its parser runs into
        raise file.error(f"is damaged or no PDF ({type(error).__name__}: {error})") from error
    if not text:
        raise file.error("has no text layer, only images: recognise the text first, for example with `ocrmypdf`")
    yield Found(text, {"title": title} if title else {})
