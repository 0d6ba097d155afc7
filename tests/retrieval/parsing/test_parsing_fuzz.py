"""Files with bytes flipped and ends cut off either parse or are refused: nothing else, and never without end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_files import docx, pdf

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.process import ParserPool
from engine.retrieval.parsing.table_rows import parse_csv, parse_jsonl
from engine.retrieval.parsing.zip_limits import check_office_zip

SOUND = {
    "pdf": pdf("Volumes are disks.", "Snapshots are kept.", title="Handbook"),
    "docx": docx("Volumes", "Volumes are disks."),
    "csv": b'name,price,note\nDisk,5,"fast, small"\n"Big\ndisk",7,\n' * 4,
    "jsonl": b'{"name": "Disk", "tags": ["a", {"b": [1.5, null]}]}\n{"name": "\\ud83d\\ude00"}\n' * 4,
}
broken = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.floats(0, 1)),
)
bounded = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def damage(body: bytes, damages: tuple[list[tuple[float, int]], float | None]) -> bytes:
    """Set bytes at relative places, then cut."""
    flips, cut = damages
    changed = bytearray(body)
    for place, value in flips:
        changed[int(place * len(changed))] = value
    return bytes(changed if cut is None else changed[: int(cut * len(changed))])


@pytest.fixture(scope="module")
def pool() -> Iterator[ParserPool]:
    pool = ParserPool(limits=ParsingLimits(timeout_s=20, max_memory_bytes=512 * 2**20))
    yield pool
    pool.close()


def check(parse) -> None:
    try:
        document = parse()
    except UnparsableDocument as error:
        assert str(error)
        return
    document.text.encode()
    assert all(0 <= section.start < len(document.text) for section in document.sections)


@pytest.mark.parametrize("kind", SOUND)
def test_sound_file_parses_or_lacks_only_its_extra(pool, kind):
    try:
        assert "Disk" in pool.parse(kind, SOUND[kind]).text or "Volumes" in pool.parse(kind, SOUND[kind]).text
    except UnparsableDocument as error:
        assert kind == "docx" and "switchyard[office]" in str(error)


@bounded
@given(broken)
def test_broken_pdf_parses_or_is_refused(pool, damages):
    check(lambda: pool.parse("pdf", damage(SOUND["pdf"], damages)))


@bounded
@given(broken)
def test_broken_word_file_parses_or_is_refused(pool, damages):
    check(lambda: pool.parse("docx", damage(SOUND["docx"], damages)))


@bounded
@given(broken)
def test_broken_archive_passes_or_is_refused(damages):
    try:
        check_office_zip(damage(SOUND["docx"], damages), "docx")
    except UnparsableDocument as error:
        assert str(error).startswith("the .docx file ")


@bounded
@given(broken)
def test_broken_csv_parses_or_is_refused(damages):
    check(lambda: parse_csv(damage(SOUND["csv"], damages), ParsingLimits()))


@bounded
@given(broken)
def test_broken_jsonl_parses_or_is_refused(damages):
    check(lambda: parse_jsonl(damage(SOUND["jsonl"], damages), ParsingLimits()))


@bounded
@given(st.binary(max_size=400))
@example(b'"')
@example(b"\xef\xbb\xbf")
def test_any_bytes_as_rows_parse_or_are_refused(body):
    check(lambda: parse_csv(body, ParsingLimits()))
    check(lambda: parse_csv(body, ParsingLimits(), delimiter="\t"))
    check(lambda: parse_jsonl(body, ParsingLimits()))
