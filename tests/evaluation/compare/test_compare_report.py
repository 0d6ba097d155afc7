"""The report: one page that holds everything, whatever stands in questions and answers, and tables of the same."""

from __future__ import annotations

import asyncio
import csv
import json
import re

import pytest
from compare_server import MadeServer, card
from json_server import transport

from engine.errors import SwitchyardError
from engine.evaluation.asking import Server
from engine.evaluation.compare.job import CompareJob
from engine.evaluation.compare.per_query import write_answers
from engine.evaluation.compare.report import page, summary, write_report
from engine.evaluation.compare.running import run_comparison
from engine.evaluation.compare.updating import Update
from engine.evaluation.questions import Question

LONG = "bot-" + 59 * "x" + "1"
HOSTILE = "<script>alert(1)</script>=1+1"


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    def run(num=40, arms=None, **fields):
        facts = {f"thing{n}": f"code{n}" for n in range(num)}
        made = MadeServer(facts, {"thing0": HOSTILE, "thing1": "code1"}, [card(LONG, verdict="risky")])
        questions = [
            Question(f"q{n}", f"What is the code of thing{n}?", (f"code{n}",), source=f"source {n % 2} <b>")
            for n in range(num)
        ]
        questions[1] = Question("q1", "=HYPERLINK(1)", label="@label", group="g")
        update = Update(
            id="docs/thing0.md",
            text="The code of thing0 is other.",
            question="What is the code of thing0?",
            answer_before="code0",
            answer_after="other",
        )
        folder = tmp_path_factory.mktemp("compare")
        job = CompareJob(
            "q.jsonl",
            "2026-01-01T00:00:00+00:00",
            tuple(questions),
            folder,
            folder,
            arms=arms,
            updates=(update,),
            **fields,
        )

        async def go():
            async with Server("http://server", transport=transport(made.reply)) as server:
                return await run_comparison(job, server)

        return asyncio.run(go())

    return run


@pytest.fixture(scope="module")
def compared(compare):
    return compare()


def test_the_page_needs_nothing_else_and_shows_texts_as_texts(compared, tmp_path):
    written = write_report(compared, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in written and "&lt;script&gt;alert(1)" in written
    assert "source 0 &lt;b&gt;" in written
    assert not re.search(r'(?:src|href)="(?!#)', written)
    for title in ("At a glance", "Quality", "Time and cost", "What the passages hold", "When a document changes"):
        assert f">{title}</h2>" in written
    assert LONG in written.replace("<wbr>", "") and "not to be believed" in written
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_questions"] == 40
    assert {each["name"] for each in report["arms"]} == {"base", "base+context", LONG, f"{LONG}+context", "auto"}


def test_the_same_comparison_makes_the_same_page(compared):
    assert page(compared) == page(compared)


def test_every_answer_is_in_the_table_and_none_is_a_formula(compared, tmp_path):
    with write_answers(compared.sheet, tmp_path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert rows[1]["question"] == "'=HYPERLINK(1)" and rows[1]["right"] == "'@label"
    assert rows[0][f"{LONG} answer"] == HOSTILE
    assert (rows[2]["base+context quality"], rows[2]["base+context answer"]) == ("1.0000", "code2")
    assert (rows[2]["base refused"], rows[2]["base hit"]) == ("1", "")


def test_the_terminal_names_every_arm_the_best_first(compared):
    lines = summary(compared.comparison)
    assert lines[0] == compared.comparison.verdict.headline
    table = [line for line in lines if re.match(r"  \S+ +\d\.\d{3} ", line)]
    assert len(table) == 5 and "best" in table[0]
    assert any("(not to be believed)" in line for line in table)


def test_one_arm_and_few_questions_have_a_page_too(compare):
    for found in (compare(3), compare(40, arms=("base",)), compare(3, arms=("base+context",))):
        assert "</html>" in page(found)
        assert summary(found.comparison)


def test_a_folder_that_cannot_be_written_is_named(compared, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SwitchyardError, match=r"per_query\.csv: cannot be written"):
        write_report(compared, tmp_path / "file")
