"""Word, PowerPoint and Excel files, and the archives that only look like them."""

from __future__ import annotations

import io
import struct
import sys
from importlib.util import find_spec

import pytest
from small_files import docx, zipped

from engine.errors import UnparsableDocument
from engine.retrieval.parsing import zip_limits
from engine.retrieval.parsing.formats import parse_document
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.office import parse_office
from engine.retrieval.parsing.zip_limits import check_office_zip

WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
with_office = pytest.mark.skipif(not find_spec("markitdown"), reason="the extra `office` is not installed")
TYPES = {"[Content_Types].xml": "<Types/>"}


def test_without_the_extra_an_office_file_is_refused_naming_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "markitdown", None)
    with pytest.raises(UnparsableDocument, match=r"pip install 'switchyard\[office\]'"):
        parse_office(docx("Title", "text"), ParsingLimits(), kind="docx")


@with_office
def test_word_file_becomes_markdown_with_its_headings():
    document = parse_document(docx("Volumes", "Volumes are disks."), WORD, title=None)
    assert document.text == "# Volumes\n\nVolumes are disks."
    assert (document.title, [section.path for section in document.sections]) == ("Volumes", [("Volumes",)])


@with_office
def test_title_is_that_of_the_files_properties():
    core = "<x><dc:title>Q&amp;A &#8211; 2024</dc:title></x>"
    body = docx("Heading", "text", **{"docProps/core.xml": core})
    assert parse_office(body, ParsingLimits(), kind="docx").title == "Q&A – 2024"


@with_office
def test_slides_are_sections_and_pictures_leave_what_was_written_about_them():
    pptx = pytest.importorskip("pptx")
    presentation = pptx.Presentation()
    for number in (1, 2):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = f"Topic {number}"
        slide.placeholders[1].text = f"Point {number}"
    file = io.BytesIO()
    presentation.save(file)
    document = parse_office(file.getvalue(), ParsingLimits(), kind="pptx")
    assert [section.path for section in document.sections] == [
        ("Slide 1",),
        ("Slide 1", "Topic 1"),
        ("Slide 2",),
        ("Slide 2", "Topic 2"),
    ]
    assert "Point 2" in document.text


@with_office
def test_sheets_are_sections_with_their_rows():
    openpyxl = pytest.importorskip("openpyxl")
    workbook = openpyxl.Workbook()
    workbook.active.title = "Prices"
    workbook.active.append(["name", "price"])
    workbook.active.append(["Disk", 5])
    file = io.BytesIO()
    workbook.save(file)
    document = parse_office(file.getvalue(), ParsingLimits(), kind="xlsx")
    assert [section.path for section in document.sections] == [("Prices",)]
    assert "| Disk | 5 |" in document.text


@with_office
def test_file_whose_parts_are_no_xml_is_refused_as_damaged():
    with pytest.raises(UnparsableDocument, match=r"the \.docx file is damaged"):
        parse_office(docx("a", **{"word/document.xml": "<w:document"}), ParsingLimits(), kind="docx")


@with_office
def test_file_without_text_is_refused():
    with pytest.raises(UnparsableDocument, match=r"the \.docx file has no text"):
        parse_office(docx(""), ParsingLimits(), kind="docx")


def test_sound_archive_passes():
    check_office_zip(docx("a", "b"), "docx")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is no readable zip archive"),
        (b"PK\x03\x04 and no more", "is no readable zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 old", "is encrypted or of the format before 2007"),
        (zipped({"a.txt": "text"}), "is a zip archive, but not of an office file"),
        (zipped(TYPES | {"word/inner.docx": docx("a")}), "holds another archive .*inner"),
        (zipped(TYPES | {"word/x.xml": b"\0" * 8_000_000}), "unpacks 'word/x.xml' .* more than 200 to one"),
    ],
    ids=["empty", "cut off", "before 2007", "other", "nested", "bomb"],
)
def test_archive_that_no_office_program_writes_is_refused(body, message):
    with pytest.raises(UnparsableDocument, match=rf"the \.docx file {message}"):
        check_office_zip(body, "docx")


def test_workbook_embedded_for_a_chart_is_no_nested_archive():
    check_office_zip(zipped(TYPES | {"ppt/embeddings/Sheet1.xlsx": docx("a")}), "pptx")


def test_sum_of_what_unpacks_is_limited_however_small_each_entry_is(monkeypatch):
    monkeypatch.setattr(zip_limits, "MAX_UNPACKED_BYTES", 10_000)
    many = zipped(TYPES | {f"word/{i}.xml": b" " * 1_000 for i in range(20)})
    with pytest.raises(UnparsableDocument, match=r"unpacks to 20008 bytes, allowed are 10000"):
        check_office_zip(many, "docx")


def test_number_of_entries_is_limited(monkeypatch):
    monkeypatch.setattr(zip_limits, "MAX_ENTRIES", 10)
    with pytest.raises(UnparsableDocument, match="holds 12 files, allowed are 10"):
        check_office_zip(zipped(TYPES | {str(i): b"" for i in range(11)}), "docx")


def test_entry_that_declares_less_than_it_holds_is_refused_when_it_is_read():
    honest = zipped(TYPES | {"word/document.xml": b"x" * 50_000})
    size = struct.pack("<L", 50_000)
    assert honest.count(size) == 2
    with pytest.raises(UnparsableDocument):
        parse_office(honest.replace(size, struct.pack("<L", 3)), ParsingLimits(), kind="docx")


def test_encrypted_entry_is_refused():
    body = bytearray(zipped(TYPES))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        body[body.find(signature) + offset] |= 1
    with pytest.raises(UnparsableDocument, match="has an encrypted entry"):
        check_office_zip(bytes(body), "docx")
