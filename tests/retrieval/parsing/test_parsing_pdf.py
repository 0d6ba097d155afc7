"""PDF files: text page by page, and every way in which one can be bad."""

from __future__ import annotations

import io

import pytest
from pypdf import PdfWriter
from small_files import pdf

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.formats import parse_document
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.pdf import parse_pdf
from engine.retrieval.parsing.process import ParserPool

THREE_PAGES = pdf("Volumes are disks.", "Snapshots are kept for five days.", "Prices follow.", title="Handbook")


def parsed(body: bytes, **limits: int):
    return parse_pdf(body, ParsingLimits(**limits))


def test_every_page_is_a_section_that_passages_can_name():
    document = parse_document(THREE_PAGES, "application/pdf", title=None)
    assert document.text == (
        "Page 1\n\nVolumes are disks.\n\n\nPage 2\n\nSnapshots are kept for five days.\n\n\nPage 3\n\nPrices follow."
    )
    assert [section.path for section in document.sections] == [("Page 1",), ("Page 2",), ("Page 3",)]
    assert [document.text[section.start :].split("\n")[0] for section in document.sections] == [
        "Page 1",
        "Page 2",
        "Page 3",
    ]
    assert not document.is_markdown


def test_title_is_the_given_one_then_that_of_the_document_information_then_none():
    assert parse_document(THREE_PAGES, "application/pdf", title=" Given\n").title == "Given"
    assert parse_document(THREE_PAGES, "application/pdf", title=None).title == "Handbook"
    assert parsed(pdf("text")).title is None


def test_page_without_text_is_left_out_and_the_others_keep_their_numbers():
    assert [section.path for section in parsed(pdf("first", b"", "third")).sections] == [("Page 1",), ("Page 3",)]


def test_pages_without_any_text_are_refused_naming_ocr():
    image_only = pdf(b"0 0 612 792 re f", b"")
    with pytest.raises(UnparsableDocument, match=r"has no text on its 2 pages.*Run OCR over it first: ocrmypdf"):
        parsed(image_only)


def test_file_without_pages_is_refused():
    with pytest.raises(UnparsableDocument, match="has no pages"):
        parsed(pdf())


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_encrypted_file_is_refused_naming_the_command_that_decrypts(algorithm):
    writer = PdfWriter(clone_from=io.BytesIO(THREE_PAGES))
    writer.encrypt("secret", algorithm=algorithm)
    file = io.BytesIO()
    writer.write(file)
    with pytest.raises(UnparsableDocument, match=r"is encrypted.*qpdf --decrypt"):
        parsed(file.getvalue())


def test_file_that_was_cut_off_is_refused_rather_than_indexed_in_part():
    with pytest.raises(UnparsableDocument, match="without its end mark %%EOF, so it was cut off"):
        parsed(THREE_PAGES[:-10])


def test_damaged_file_is_refused_naming_the_command_that_repairs():
    with pytest.raises(UnparsableDocument, match=r"is damaged \(its structure.*qpdf"):
        parsed(b"%PDF-1.7\nnothing that is a PDF\n%%EOF")


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04", b"x" * 2000 + b"%PDF-1.7 %%EOF"])
def test_bytes_that_are_no_pdf_are_refused(body):
    with pytest.raises(UnparsableDocument, match="%PDF- is not among its first 1024 bytes"):
        parsed(body)


def test_pages_and_characters_are_limited():
    with pytest.raises(UnparsableDocument, match="has 3 pages, allowed are 2"):
        parsed(THREE_PAGES, max_pages=2)
    with pytest.raises(UnparsableDocument, match="more than 40 characters by page 2"):
        parsed(THREE_PAGES, max_chars=40)


def test_control_characters_do_not_reach_the_text():
    assert parsed(pdf(r"a\001b\000c")).text == "Page 1\n\na b c"


def test_content_stream_that_unpacks_without_end_is_refused():
    bomb = pdf(b"q Q " * 25_000_000)
    assert len(bomb) < 300_000
    with pytest.raises(UnparsableDocument, match=r"unpacks into more than a page needs \(page 1"):
        parsed(bomb)


def test_page_of_endless_operators_costs_its_process_and_not_the_server():
    pool = ParserPool(limits=ParsingLimits(max_memory_bytes=96 * 2**20))
    try:
        with pytest.raises(UnparsableDocument, match="needs more than 96 MiB of memory"):
            pool.parse("pdf", pdf(b"BT (x) Tj ET " * 160_000))
        assert pool.parse("pdf", pdf("still here")).text == "Page 1\n\nstill here"
    finally:
        pool.close()
