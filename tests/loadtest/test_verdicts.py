"""What a load test judged, printed and kept."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.verdicts import Verdict, print_verdicts, write_verdicts

GOOD = Verdict("writes", True, 2.0, "s", "3 sent")
BAD = Verdict("answers", False, 1.0, "requests", "1 unclear [the first]")
UNKNOWN = Verdict("memory", None, None, "growth", "not measured")


@pytest.mark.parametrize(("verdicts", "code"), [([GOOD], 0), ([GOOD, UNKNOWN], 0), ([GOOD, BAD], 1)])
def test_what_was_not_measured_is_no_failure_and_what_does_not_hold_is(verdicts, code):
    assert print_verdicts(verdicts, Console(file=io.StringIO())) == code


def test_each_is_one_line_in_plain_words():
    printed = io.StringIO()
    print_verdicts([GOOD, BAD, UNKNOWN], Console(file=printed, width=20))
    assert printed.getvalue().splitlines() == [
        "writes: holds; 3 sent",
        "answers: does not hold; 1 unclear [the first]",
        "memory: not judged; not measured",
    ]


def test_file_says_where_it_was_measured(tmp_path: Path):
    write_verdicts(tmp_path / "figures.json", [BAD], rate=2.0)
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["rate"] == 2.0 and content["machine"]["cores"] >= 1 and content["commit"]
    assert content["figures"] == [
        {"name": "answers", "holds": False, "value": 1.0, "unit": "requests", "words": "1 unclear [the first]"}
    ]
