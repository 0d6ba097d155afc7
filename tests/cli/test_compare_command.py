"""`switchyard compare` against a made-up server on a port: what it writes, and what it says of bad input."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from compare_server import MadeServer, card
from json_server import listening

from engine.cli.main import main
from engine.evaluation import asking

FACTS = {f"thing{n}": f"code{n}" for n in range(35)}


@pytest.fixture
def made():
    return MadeServer(FACTS, {"thing1": "code1"}, [card("bot"), card("idle", loaded=False)])


@pytest.fixture
def url(made):
    with listening(made.reply) as url:
        yield url


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [{"id": t, "question": f"What is the code of {t}?", "answers": [code]} for t, code in FACTS.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run(url, tmp_path):
    def call(*arguments, code=0, server=url):
        out = ["--out", str(tmp_path / "out"), "--url", server, "--data", str(tmp_path / "data")]
        done = CliRunner().invoke(main, ["compare", *map(str, arguments), *out])
        assert done.exit_code == code, done.output
        return done

    return call


def test_compare_writes_a_report_and_says_which_arm_to_serve(run, questions, tmp_path):
    done = run(questions)
    assert done.stdout.startswith("Serve base+context (RAG: the base model with passages): quality 1.000")
    assert f"report in {tmp_path / 'out' / 'report.html'}" in done.stdout
    assert {each.name for each in (tmp_path / "out").iterdir()} >= {"report.html", "report.json", "per_query.csv"}
    again = run(questions)
    assert "175 of 175 answers were kept before" in again.stderr


def test_compare_prints_one_json_object(run, questions):
    found = json.loads(run(questions, "--json", "--sample", "32", "--arms", "base, bot").stdout)
    assert (found["num_questions"], found["setting"]["num_in_file"]) == (32, 35)
    assert [each["name"] for each in found["arms"]] == ["base", "bot"]


def test_compare_shows_examples_and_changes_documents(run, questions, tmp_path, made):
    train, changes = tmp_path / "train.jsonl", tmp_path / "changes.jsonl"
    train.write_text('{"question": "What is the code of other?", "answers": ["other"]}\n')
    change = {
        "id": "docs/thing3.md",
        "text": "The code of thing3 is new.",
        "question": "What is the code of thing3?",
        "answer_before": "code3",
        "answer_after": "new",
    }
    changes.write_text(json.dumps(change))
    found = json.loads(run(questions, "--few-shot", train, "--shots", 1, "--updated-kb", changes, "--json").stdout)
    assert {each["arm"]: each["followed"] for each in found["updates"]}["base+context"] == 1
    assert made.collections["default"]["docs/thing3.md"]["text"] == "The code of thing3 is code3."
    assert any(each["name"] == "few-shot" for each in found["arms"])


@pytest.mark.parametrize(
    ("arms", "code", "said"),
    [
        ("base,nobody", 1, "there is no arm nobody"),
        ("idle", 1, "switchyard adapters load idle"),
        ("base+", 2, "arm 'base+' is no arm"),
        (",", 2, "no arm is named"),
        ("few-shot", 1, "--few-shot TRAIN.jsonl"),
    ],
)
def test_compare_names_the_arm_that_cannot_answer(run, questions, arms, code, said):
    assert said in run(questions, "--arms", arms, code=code).stderr


@pytest.mark.parametrize(
    ("content", "said"), [("", "holds no question"), ("{}\n", "line 1"), ('{"question": "a"}\n', "what is right")]
)
def test_compare_names_what_is_wrong_with_the_questions(run, tmp_path, content, said):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    done = run(file, code=1)
    assert said in done.stderr and "Traceback" not in done.stderr
    assert "cannot be" in run(tmp_path / "none.jsonl", code=1).stderr


def test_compare_says_where_no_server_is_and_where_one_died(run, questions, made, monkeypatch):
    monkeypatch.setattr(asking, "_BREAK_S", 0.0)
    absent = run(questions, code=1, server="http://127.0.0.1:1").stderr
    assert "no server answers at http://127.0.0.1:1" in absent and "kept" not in absent
    made.fail_after = 50
    died = run(questions, code=1)
    assert re.search(r"\d+ answers are kept in .*; the same command goes on", died.stderr)
    made.fail_after = None
    assert "answers were kept before" in run(questions).stderr
