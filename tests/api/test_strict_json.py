"""JSON that is not JSON is refused by position, before any field is looked at."""

from __future__ import annotations

import pytest

from engine.api.strict_json import MAX_DEPTH, parse_json
from engine.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": 1} trailing', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b'{"a": 1e999}', "beyond the range"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nests deeper"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_body_is_refused_with_the_reason(body, message):
    with pytest.raises(InvalidRequest, match=message):
        parse_json(body)


def test_body_at_the_depth_limit_is_read():
    assert parse_json(b"[" * MAX_DEPTH + b"1.5" + b"]" * MAX_DEPTH)


def test_text_of_every_script_survives():
    assert parse_json('{"a": "שלום 🤖 \\u0000 né"}'.encode()) == {"a": "שלום 🤖 \x00 né"}
