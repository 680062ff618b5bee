"""Characters that say nothing, and words parted at line ends."""

from __future__ import annotations

import io

import pytest
from pypdf import PdfReader, PdfWriter
from reader_files import Skips, only, pdf_bytes, write

from memory3.text.readers.characters import plain
from memory3.text.readers.hyphens import joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("har\u00adbour mas\u00ad\nter", "harbour master"),
        ("quay\u200bside \u2060pi\ufefflot\u200d gull\u200c\u200b", "quayside pilot gull"),
        ("12\u00a0500 12\u202f500", "12 500 12 500"),
        ("\u202eabc\u202c \u2066d\u2069\u200e\u200f", "abc d"),
        ("\ufb01sh o\ufb00er \ufb02ow a\ufb03x ba\ufb04e \ufb05op \ufb06op", "fish offer flow affix baffle stop stop"),
        ("x\U000e0041\U000e0042y", "xy"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.jsonl"])
def test_dropped_whatever_the_format(text, expected, name, tmp_path):
    content = f'{{"text": "{text}"}}'.replace("\n", "\\n") if name == "a.jsonl" else text
    if name == "a.html":
        content = f"<pre>{text}</pre>"
    assert only(write(tmp_path / name, content)).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "x² ½ Å ＡＢ ㎏ e\u0301 全角\u3000",
        "می\u200cخواهم क्\u200dष ක්\u200dර",
        "👩\u200d👩\u200d👧 ❤️\u200d🔥 🏳️\u200d🌈 1️⃣",
        "สวัสดี\u200bครับ",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ],
)
def test_kept(text):
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the light-\nhouse keep-  \ner", "the lighthouse keeper"),
        ("a self-\nmade man from Anglo-\nSaxon times, COVID-\n19", "a self-made man from Anglo-Saxon times, COVID-19"),
        ("the REQUIRE-\nMENTS, a mother-in-\nlaw", "the REQUIREMENTS, a mother-in-law"),
        ("re-cover. We re-\ncover", "re-cover. We re-cover"),  # as elsewhere in the text
        ("highchairs, high-\nchairs", "highchairs, highchairs"),
        ("pre-\nand post-war", "pre- and post-war"),
        ("Donau-\ndampf-\nschiff", "Donaudampfschiff"),
        ("- item\n- item\n--\nx 3 -\n4", "- item\n- item\n--\nx 3 -\n4"),
    ],
)
def test_parted_words(text, expected):
    assert joined(text) == expected


def pages(*texts: str) -> PdfWriter:
    writer = PdfWriter()
    for text in texts:
        writer.append(PdfReader(io.BytesIO(pdf_bytes(text))))
    return writer


def saved(writer: PdfWriter) -> bytes:
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("texts", "note"),
    [(("One", " "), "page 2 of 2 has no"), ((" ", "Two", " ", " ", "Five"), "pages 1, 3-4 of 5 have no"), (("One",), "")],
)
def test_pages_without_text_are_told(texts, note, tmp_path):
    skips = Skips()
    document = only(write(tmp_path / "a.pdf", saved(pages(*texts))), on_skip=skips)
    assert document.text == "\n\n".join(text for text in texts if text.strip())
    assert (note in skips.reasons()) if note else not skips


def test_what_is_filled_in(tmp_path):
    from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NullObject, TextStringObject

    def widget(**entries):
        named = {NameObject(f"/{key}"): value for key, value in entries.items()}
        return DictionaryObject({NameObject("/Subtype"): NameObject("/Widget"), **named})

    text = TextStringObject
    writer = pages("Form", "Next")
    fields = [
        widget(FT=NameObject("/Tx"), T=text("keeper"), V=text("Orm")),
        widget(FT=NameObject("/Tx"), T=text("empty")),
        widget(FT=NameObject("/Btn"), T=text("night"), V=NameObject("/Yes"), AS=NameObject("/Yes")),
        widget(FT=NameObject("/Btn"), T=text("day"), V=NameObject("/Off"), AS=NameObject("/Off")),
        widget(FT=NameObject("/Ch"), T=text("ports"), V=ArrayObject([text("Kiel"), text("Oslo")])),
    ]
    annotations = ArrayObject([*(writer._add_object(field) for field in fields), NullObject()])
    writer.pages[0][NameObject("/Annots")] = writer._add_object(annotations)  # elsewhere in the file
    document = only(write(tmp_path / "a.pdf", saved(writer)))
    assert document.text == "Form\nkeeper: Orm\nnight: Yes\nports: Kiel, Oslo\n\nNext"
