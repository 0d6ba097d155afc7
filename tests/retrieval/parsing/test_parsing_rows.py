"""Tables: every row a section of its own."""

from __future__ import annotations

import json

import pytest

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.parsing.formats import parse_document
from engine.retrieval.parsing.limits import ParsingLimits
from engine.retrieval.parsing.table_rows import parse_csv, parse_jsonl

CSV = b'name,price,note\nDisk,5,"fast, small"\n\n"Big\ndisk",7,\n'


def rows_of(document) -> list[str]:
    starts = [section.start for section in document.sections]
    return [document.text[start:end].rstrip("\n") for start, end in zip(starts, [*starts[1:], None], strict=True)]


def csv_rows(body: bytes, **limits: int) -> list[str]:
    return rows_of(parse_csv(body, ParsingLimits(**limits)))


def jsonl_rows(*lines: object, **limits: int) -> list[str]:
    body = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()
    return rows_of(parse_jsonl(body, ParsingLimits(**limits)))


def test_row_of_a_csv_file_names_its_line_and_its_columns():
    document = parse_document(CSV, "text/csv; charset=utf-8", title="Prices")
    assert document.title == "Prices"
    assert [section.path for section in document.sections] == [("Line 2",), ("Line 4",)]
    assert rows_of(document) == [
        "Line 2\nname: Disk\nprice: 5\nnote: fast, small",
        "Line 4\nname: Big\ndisk\nprice: 7",
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_the_one_that_cuts_the_first_rows_alike(delimiter):
    body = f'a{delimiter}b\n1{delimiter}"x, y; z"\n2{delimiter}"q|\tr"\n'.encode()
    assert csv_rows(body) == ["Line 2\na: 1\nb: x, y; z", "Line 3\na: 2\nb: q|\tr"]


def test_tab_separated_file_may_hold_any_other_delimiter():
    document = parse_document(b"a;b\tc\n1;2\t3\n", "text/tab-separated-values", title=None)
    assert rows_of(document) == ["Line 2\na;b: 1;2\nc: 3"]


def test_single_column_needs_no_delimiter():
    assert csv_rows(b"question\nWhy?\nHow so?\n") == ["Line 2\nquestion: Why?", "Line 3\nquestion: How so?"]


def test_column_without_a_name_goes_by_its_number():
    assert csv_rows(b",b\n1,2\n") == ["Line 2\ncolumn 1: 1\nb: 2"]


def test_blank_lines_inside_a_cell_do_not_end_its_row():
    assert csv_rows(b'a,b\n"one\n\n  \ntwo",3\n') == ["Line 2\na: one\ntwo\nb: 3"]


def test_table_without_rows_is_empty_text():
    for body in (b"", b"a,b\n", b"\n\n"):
        assert parse_csv(body, ParsingLimits()).text == ""
    assert parse_jsonl(b"", ParsingLimits()).text == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"a,b\n1,2\n3\n", r"line 3 has 1 cells, the first row names 2 columns"),
        (b"a,b\n1,2\n3,4,5\n", r"line 3 has 3 cells"),
        (b"a,b,a\n1,2,3\n", r"line 1: columns 1 and 3 are both named 'a'"),
        (b'a,b\n1,2\n3,"4\n5,6\n', r"the row in line 3 cannot be read \(unexpected end of data\)"),
        (b'a,b\n1,"2"x\n', r"the row in line 2 cannot be read"),
        (b"a,b\n1,\x00\n", r"byte 6 is NUL \(line 2\)"),
        (b"a,b\n1,\xff\n", r"byte 6 \(0xff\) is not UTF-8 \(line 2\)"),
        (b"a," + b"b" * 1001 + b"\n", r"line 1: the name of column 2 has 1001 characters, allowed are 1000"),
    ],
)
def test_bad_row_of_a_csv_file_is_named_with_its_line(body, message):
    with pytest.raises(UnparsableDocument, match=message):
        csv_rows(body)


def test_rows_columns_cells_and_characters_of_a_csv_file_are_limited():
    with pytest.raises(UnparsableDocument, match="line 4: the file has more than 2 rows"):
        csv_rows(b"a\n1\n2\n3\n", max_rows=2)
    with pytest.raises(UnparsableDocument, match="line 1 names 3 columns, allowed are 2"):
        csv_rows(b"a,b,c\n", max_columns=2)
    with pytest.raises(UnparsableDocument, match=r"line 2 cannot be read \(field larger than field limit \(10\)"):
        csv_rows(b"a\n" + b"x" * 11 + b"\n", max_field_chars=10)


def test_long_column_names_repeated_in_every_row_are_no_bomb():
    body = ",".join(f"{'x' * 900}{i}" for i in range(500)) + "\n" + (",".join("1" * 500) + "\n") * 1000
    with pytest.raises(UnparsableDocument, match=r"line \d+: the rows, .* become more than 10000000 characters"):
        csv_rows(body.encode())


def test_line_of_nothing_but_delimiters_is_refused_in_time():
    with pytest.raises(UnparsableDocument, match="names 5000001 columns"):
        csv_rows(b"," * 5_000_000 + b"x\n")


def test_row_of_json_names_its_fields_with_dots_and_keeps_numbers_as_written():
    row = '{"name": "Disk", "price": 1.50, "big": 123456789012345678901234567890, "sold": false, "none": null}'
    nested = {"address": {"city": "Köln", "geo": {"lat": 1}}, "tags": ["a", "b", 3], "items": [{"n": 1}, {"n": 2}]}
    assert jsonl_rows(row, "", nested) == [
        "Line 1\nname: Disk\nprice: 1.50\nbig: 123456789012345678901234567890\nsold: false",
        "Line 3\naddress.city: Köln\naddress.geo.lat: 1\ntags: a, b, 3\nitems.n: 1\nitems.n: 2",
    ]


@pytest.mark.parametrize("content_type", ["application/jsonl", "application/x-ndjson"])
def test_json_lines_are_known_by_both_of_their_types(content_type):
    assert parse_document(b'{"a": 1}', content_type, title=None).text == "Line 1\na: 1"


def test_halves_of_surrogate_pairs_and_nul_in_json_do_not_reach_the_text():
    (row,) = jsonl_rows(r'{"a": "x\ud800y\u0000z", "b\udfff": "\ud83d\ude00"}')
    assert row == "Line 1\na: x�y z\nb�: 😀"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json}", r"line 2 is no JSON \(Expecting property name enclosed in double quotes at column 2\)"),
        ('{"a": NaN}', r"line 2 is no JSON \(NaN is not a value of JSON\)"),
        ("[1]", "line 2 is JSON, but no object"),
        ("3", "line 2 is JSON, but no object"),
        ('{"a": ' * 33 + "1" + "}" * 33, "line 2 is nested deeper than 32 levels"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 is nested deeper than 32 levels"),
        ("[" * 1_000_000, "line 2 is nested deeper than 32 levels"),
        (json.dumps({"n" * 1001: 1}), "line 2: a name has 1001 characters"),
        (json.dumps({"a": "x" * 101}), "line 2: the value of 'a' has 101 characters, allowed are 100"),
        (json.dumps({str(i): i for i in range(11)}), "line 2 has more than 10 values"),
        ('{"a": "\x00"}', r"byte \d+ is NUL \(line 2\)"),
    ],
    ids=lambda value: value[:30],
)
def test_bad_line_of_json_is_named(line, message):
    with pytest.raises(UnparsableDocument, match=message):
        jsonl_rows({"a": 1}, line, max_columns=10, max_field_chars=100)


def test_nesting_up_to_the_limit_is_read():
    (row,) = jsonl_rows('{"a": ' * 32 + "1" + "}" * 32)
    assert row.endswith("a.a: 1")


def test_chunks_hold_whole_rows(encoder):
    rows = "".join(f"item {i},{i} coins,deck {i % 7} of the ship\n" for i in range(200))
    document = parse_csv(f"name,price,place\n{rows}".encode(), ParsingLimits())
    chunker = Chunker(encoder.tokenizer, chunk_tokens=60, overlap_tokens=0, max_tokens=encoder.max_tokens)
    chunks = chunker.chunks(document)
    assert 10 < len(chunks) < 200
    for chunk in chunks:
        text = document.text[chunk.start : chunk.end]
        assert text.startswith("Line ") and chunk.heading == text.split("\n")[0]
        assert text.count("name: ") == text.count("price: ") == text.count("place: ") == text.count("Line ")
    assert sum(document.text[chunk.start : chunk.end].count("Line ") for chunk in chunks) == 200
