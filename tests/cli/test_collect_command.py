"""`switchyard router collect`, over a real port."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from stub_arms import StubArms

from engine.cli.main import main
from engine.evaluation.outcome_lines import read_outcomes


@pytest.fixture
def stub():
    return StubArms()


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [{"id": f"q{number}", "question": f"Who is {number}?", "answers": ["Ada"]} for number in range(12)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def run(stub, *arguments):
    with stub.serve() as url:
        return CliRunner().invoke(main, ["router", "collect", *map(str, arguments), "--url", url])


def test_collect_writes_outcomes_that_train_reads_and_prints_the_arms(stub, questions, tmp_path):
    done = run(stub, questions, "--out", tmp_path / "out.jsonl", "--arms", "base,base+context")
    assert done.exit_code == 0, done.output
    assert "12 questions, 2 arms: base, base+context" in done.stderr
    assert "12 questions, 12 of them with arms that differ" in done.stdout
    assert f"switchyard router train {tmp_path / 'out.jsonl'} --out router/" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["base", "12", "0", "1.000", "0%"] in [row[:5] for row in rows]
    found = read_outcomes([tmp_path / "out.jsonl"])
    assert found.questions[0].question == "Who is 0?"
    assert {each.name for each in tmp_path.iterdir()} == {"questions.jsonl", "out.jsonl"}


def test_no_text_leaves_the_questions_out(stub, questions, tmp_path):
    done = run(stub, questions, "--out", tmp_path / "out.jsonl.gz", "--no-text", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["questions"], found["failed"], found["arms"]["base"]["quality"]) == (12, 0, 1.0)
    assert found["keys"]["concurrency"] == "8 at once"
    assert read_outcomes([tmp_path / "out.jsonl.gz"]).questions[0].question is None


def test_call_that_failed_goes_on_and_keeps_what_was_answered(stub, questions, tmp_path):
    stub.after = (10, lambda: stub.refusals.append((500, "internal")))
    arguments = (questions, "--out", tmp_path / "out.jsonl", "--arms", "base,bot", "--concurrency", "1")
    done = run(stub, *arguments)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "switchyard: refused with 500"
    assert not (tmp_path / "out.jsonl").exists()
    stub.after = None
    done = run(stub, *arguments)
    assert done.exit_code == 0, done.output
    assert "8 of 24 answers are there" in done.stderr


def test_failed_answers_are_told_and_asked_again(stub, questions, tmp_path):
    stub.after = (2, lambda: stub.refusals.append((400, "context_length_exceeded")))
    arguments = (questions, "--out", tmp_path / "out.jsonl", "--arms", "base,bot")
    done = run(stub, *arguments)
    assert done.exit_code == 0, done.output
    assert "1 answers failed (refused with 400); the same command asks them again" in done.stderr
    stub.after = None
    done = run(stub, *arguments)
    assert "23 of 24 answers are there" in done.stderr
    assert "failed (" not in done.stderr


def test_finished_file_is_replaced_only_where_asked(stub, questions, tmp_path):
    arguments = (questions, "--out", tmp_path / "out.jsonl", "--arms", "base,bot")
    assert run(stub, *arguments).exit_code == 0
    done = run(stub, *arguments)
    assert done.exit_code == 2
    assert "out.jsonl exists. Name another file, or replace it with --restart." in done.stderr
    assert run(stub, *arguments, "--restart").exit_code == 0


def test_bad_lines_are_each_named(stub, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"question": "Who?"}\n{\n')
    done = run(stub, tmp_path / "questions.jsonl", "--out", tmp_path / "out.jsonl")
    assert done.exit_code == 1
    assert 'line 1: has neither "answers" nor "label"' in done.stderr
    assert "line 2: is not JSON" in done.stderr


def test_options_that_contradict_and_a_folder_that_is_not_there_are_bad_usage(stub, questions, tmp_path):
    done = run(stub, questions, "--out", tmp_path / "out.jsonl", "--no-text", "--embeddings")
    assert (done.exit_code, "leave out one of them" in done.stderr) == (2, True)
    done = run(stub, questions, "--out", tmp_path / "nowhere" / "out.jsonl")
    assert (done.exit_code, "there is no folder" in done.stderr) == (2, True)


def test_server_that_is_not_there_is_named(questions, tmp_path):
    arguments = ["router", "collect", str(questions), "--out", str(tmp_path / "o.jsonl"), "--url", "http://127.0.0.1:9"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "no server answers at http://127.0.0.1:9" in done.stderr
