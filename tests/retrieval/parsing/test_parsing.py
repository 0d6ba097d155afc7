"""Bytes of a document to its text, title and sections."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from engine.errors import UnparsableDocument, UnsupportedMediaType
from engine.retrieval.parsing.formats import BINARY_TYPES, CONTENT_TYPES, MEDIA_TYPES, parse_document

DATA = Path(__file__).parents[4] / "shared" / "data"


def test_unknown_content_type_is_refused_with_the_list_of_known_ones():
    with pytest.raises(UnsupportedMediaType, match="'image/png' is not supported; allowed: application/jsonl, app"):
        parse_document(b"x", "image/png", title=None)


def test_every_ending_of_a_file_name_stands_for_a_type_that_is_read():
    assert set(CONTENT_TYPES.values()) <= set(MEDIA_TYPES)
    assert set(MEDIA_TYPES) > BINARY_TYPES


@pytest.mark.parametrize("content_type", ["text/x-markdown", "Text/Markdown; charset=utf-8"])
def test_content_type_is_read_without_case_and_parameters(content_type):
    assert parse_document(b"# A", content_type, title=None).title == "A"


@pytest.mark.parametrize(
    ("body", "offset"),
    [(b"abc\xff", 3), (b"\xef\xbb\xbfabc\xff", 6), ("ä".encode("latin-1"), 0), (b"ab\xed\xa0\x80", 2)],
)
def test_bytes_that_are_not_utf8_are_refused_with_the_first_bad_offset(body, offset):
    with pytest.raises(UnparsableDocument, match=rf"^byte {offset} \(0x{body[offset]:02x}\) is not UTF-8"):
        parse_document(body, "text/plain", title=None)


def test_nul_is_refused_with_its_offset():
    with pytest.raises(UnparsableDocument, match=r"^byte 2 is NUL"):
        parse_document(b"ab\0cd", "text/markdown", title=None)


def test_bytes_that_look_binary_are_refused_with_the_first_offset():
    with pytest.raises(
        UnparsableDocument, match=r"5 of 20 bytes are control characters, the first \(0x01\) at byte 15"
    ):
        parse_document(b"x" * 15 + b"\x01\x02\x03\x04\x05", "text/plain", title=None)


def test_escape_sequences_of_a_log_are_text():
    assert parse_document(b"\x1b[31mred\x1b[0m", "text/plain", title=None).text == "\x1b[31mred\x1b[0m"


def test_byte_order_mark_is_dropped():
    assert parse_document(b"\xef\xbb\xbf# A\n\ntext", "text/markdown", title=None).text == "# A\n\ntext"


def test_every_kind_of_line_end_becomes_a_line_feed():
    assert parse_document(b"a\r\nb\rc\nd", "text/plain", title=None).text == "a\nb\nc\nd"


def test_long_runs_of_blank_lines_are_shortened():
    assert parse_document(b"\n \na" + b"\n \n\t" * 50_000 + b"\n" + b"b\n", "text/plain", title=None).text == "a\n\n\nb"


def test_given_title_comes_before_stated_title_and_heading():
    page = b"---\ntitle: Stated\n---\n# Heading\n"
    assert parse_document(page, "text/markdown", title="Given\n title").title == "Given title"
    assert parse_document(page, "text/markdown", title=None).title == "Stated"
    assert parse_document(b"text\n\n## Heading\n", "text/markdown", title=None).title == "Heading"
    assert parse_document(b"text", "text/markdown", title=None).title is None
    assert parse_document(b"# no heading here", "text/plain", title=None).title is None


def test_empty_document_parses_to_empty_text():
    for content_type in ("text/markdown", "text/html", "text/plain"):
        assert parse_document(b"", content_type, title=None).text == ""


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_page_of_a_real_documentation_site_parses(version):
    archive = DATA / f"kb_flyio_docs_{version}.tar.gz"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    num_pages = num_titles = 0
    with tarfile.open(archive) as opened:
        for member in opened:
            if not member.name.endswith((".md", ".markerb")) or not member.isfile():
                continue
            body = opened.extractfile(member)
            assert body is not None
            parsed = parse_document(body.read(), CONTENT_TYPES[Path(member.name).suffix], title=None)
            num_pages += 1
            num_titles += parsed.title is not None
            outside_code = parsed.text.split("```")[::2]
            assert not any("<div" in text or "<%=" in text for text in outside_code if "`" not in text), member.name
    assert num_pages >= 689
    assert num_titles >= num_pages - 1
