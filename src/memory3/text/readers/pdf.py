"""PDF files: the text layer, pages separated by an empty line, then what is filled into forms."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from memory3.errors import ReadError
from memory3.text.readers.hyphens import joined
from memory3.text.readers.source import FoundFile, SourceFile

if TYPE_CHECKING:
    from pypdf import PageObject

__all__ = ["SUFFIXES", "read"]

SUFFIXES = (".pdf",)

#: Annotations whose own text shows on the page: form fields, and text boxes put on it.
_FIELD, _TEXT_BOX = "/Widget", "/FreeText"
#: Fields within fields, at most.
_DEEPEST_FIELD = 16
_REMEDY = "recognise the text first, for example with `ocrmypdf`"


def read(file: SourceFile) -> Iterator[FoundFile]:
    """One text per file. Files with an empty password are opened with it. Pages without text are reported."""
    content = file.read()
    if not content:
        return
    from pypdf import PasswordType, PdfReader  # here, because it takes a tenth of a second, and most users have no PDF
    from pypdf.errors import DependencyError

    try:
        pdf = PdfReader(io.BytesIO(content))
        if pdf.is_encrypted and pdf.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise file.error("is encrypted: save a copy without a password, for example with `qpdf --decrypt`")
        pages = ["\n".join((page.extract_text().strip(), *_put_on(page))).strip() for page in pdf.pages]
        title = str(pdf.metadata.title or "").strip() if pdf.metadata else ""
    except DependencyError as error:
        raise file.error(f"is encrypted in a way that needs another package ({error}): save a decrypted copy") from None
    except ReadError:
        raise
    except Exception as error:  # on damaged files pypdf raises whatever its parser runs into
        raise file.error(f"is damaged or no PDF ({type(error).__name__}: {error})") from error
    if not any(pages):
        raise file.error(f"has no text layer, only images: {_REMEDY}")
    empty = [number for number, page in enumerate(pages, start=1) if not page]
    if empty:
        has = "page {} of {} has" if len(empty) == 1 else "pages {} of {} have"
        file.report(f"{has.format(_ranges(empty), len(pages))} no text layer: {_REMEDY}")
    yield FoundFile(joined("\n\n".join(filter(None, pages))), {"title": title} if title else {})


def _put_on(page: PageObject) -> Iterator[str]:
    """Lines for what stands on a page in form fields, "name: value", and in text boxes."""
    annotations = _entry(page, "/Annots")
    for reference in annotations if isinstance(annotations, list) else ():
        annotation = reference.get_object()
        if not isinstance(annotation, dict):
            continue
        kind = _entry(annotation, "/Subtype")
        if kind == _TEXT_BOX and isinstance(contents := _entry(annotation, "/Contents"), str):
            yield contents.strip()
        if kind != _FIELD:
            continue
        names, value, field = [], None, annotation
        for _ in range(_DEEPEST_FIELD):  # a field within a field inherits its value
            if isinstance(name := _entry(field, "/T"), str):
                names.append(name)
            value = _entry(field, "/V") if value is None else value
            kind = _entry(field, "/FT") or kind
            if not isinstance(parent := _entry(field, "/Parent"), dict):
                break
            field = parent
        if kind == "/Btn" and _entry(annotation, "/AS") in (None, "/Off"):
            continue
        chosen = value if isinstance(value, list) else [value]
        shown = ", ".join(str(one).removeprefix("/") for one in chosen if isinstance(one, str) and one)
        if shown:
            yield f"{'.'.join(reversed(names))}: {shown}"


def _entry(holder: dict, name: str) -> object:
    """A value of a PDF dictionary, wherever in the file it is; None where there is none."""
    return holder[name] if name in holder else None  # noqa: SIM401, `get` gives where it is instead


def _ranges(numbers: Sequence[int]) -> str:
    """``2, 5-7`` for 2, 5, 6, 7."""
    firsts = [numbers[0], *(b for a, b in pairwise(numbers) if b > a + 1)]
    lasts = [*(a for a, b in pairwise(numbers) if b > a + 1), numbers[-1]]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))
