"""Files of questions: what they may hold, and how a bad line is named."""

from __future__ import annotations

import gzip
import json

import pytest

from engine.errors import TrainingDataError
from engine.evaluation.questions import Question, read_questions
from engine.tuning.data.limits import DataLimits

ROW = {"question": "Who?", "answers": ["Ada"]}


def write(path, *lines):
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def refused(*files, **limits):
    with pytest.raises(TrainingDataError) as caught:
        read_questions(files, DataLimits(**limits) if limits else None)
    return caught.value


def test_every_field_is_read(tmp_path):
    row = {
        "id": "q1",
        "source": "docs",
        "group": "g",
        "question": "Who?",
        "answers": ["Ada", "A. L."],
        "documents": ["docs/a"],
        "context": "Ada did.",
        "paraphrases": ["Which person?"],
    }
    (found,) = read_questions([write(tmp_path / "a.jsonl", {"_provenance": {}}, row)])
    assert found == Question(
        "q1",
        "Who?",
        ("Ada", "A. L."),
        None,
        source="docs",
        group="g",
        documents=("docs/a",),
        context="Ada did.",
        paraphrases=("Which person?",),
    )


def test_rows_of_tuning_are_questions_too(tmp_path):
    label = {"text": "where is my card", "label": "card_arrival"}
    answered = {"question": "Who?", "answers": ["Ada"], "document": "docs/a", "unanswerable": False}
    unknown = {"question": "Why?", "answers": [], "unanswerable": True}
    found = read_questions([write(tmp_path / "a.jsonl", label, answered, unknown)])
    assert [each.metric for each in found] == ["accuracy", "f1", "refusal"]
    assert (found[0].question, found[1].documents) == ("where is my card", ("docs/a",))


def test_question_without_an_id_gets_one_of_its_text_wherever_it_stands(tmp_path):
    (first,) = read_questions([write(tmp_path / "a.jsonl", ROW)])
    _, second = read_questions([write(tmp_path / "b.jsonl", {**ROW, "question": "What?"}, ROW)])
    assert first.id == second.id
    assert len(first.id) == 16


def test_several_files_become_one_and_may_be_compressed(tmp_path):
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({**ROW, "question": "What?"}).encode()))
    found = read_questions([write(tmp_path / "a.jsonl", ROW), tmp_path / "b.jsonl.gz"])
    assert [each.question for each in found] == ["Who?", "What?"]


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        (["one two three four five"], "f1"),
        (["one two three four five six"], "rouge_l"),
        (["one two three four five six", "one"], "f1"),
        ([], "refusal"),
    ],
)
def test_metric_is_chosen_by_the_length_of_the_answers(answers, metric):
    assert Question("q", "Who?", tuple(answers)).metric == metric


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ('["a"]', "line 2: is list, not an object"),
        ({"question": "Who?"}, 'line 2: has neither "answers" nor "label"; add what is right'),
        ({**ROW, "label": "a"}, "line 2: has answers and a label"),
        ({"answers": ["a"]}, "line 2: has no question"),
        ({**ROW, "text": "Who?"}, "line 2: has question and text"),
        ({**ROW, "question": "  "}, "line 2: has a blank question or answer"),
        ({**ROW, "answers": ["a", " "]}, "line 2: has a blank question or answer"),
        ({**ROW, "unanswerable": True}, "line 2: is unanswerable and has answers"),
        ({**ROW, "document": "a", "documents": ["b"]}, "line 2: has document and documents"),
        ({**ROW, "answers": "Ada"}, 'line 2: answers: input should be a valid array (it is "Ada")'),
        ({**ROW, "anwsers": []}, "line 2: anwsers: extra inputs are not permitted"),
        ({**ROW, "id": 3}, "line 2: id: input should be a valid string (it is 3)"),
    ],
)
def test_bad_line_is_named_with_the_fix(tmp_path, line, said):
    error = refused(write(tmp_path / "a.jsonl", ROW, line))
    assert len(error.problems) == 1
    assert error.problems[0].startswith(said)
    assert 'A line is {"id", "question", "answers"' in str(error)


def test_question_that_stands_twice_is_refused_with_the_place_of_the_first(tmp_path):
    error = refused(write(tmp_path / "a.jsonl", ROW, ROW))
    assert "a.jsonl, line 1; give each question an id of its own" in error.problems[0]


def test_the_same_id_in_two_files_is_refused(tmp_path):
    error = refused(write(tmp_path / "a.jsonl", {**ROW, "id": "x"}), write(tmp_path / "b.jsonl", {**ROW, "id": "x"}))
    assert f"id 'x' is that of {tmp_path / 'a.jsonl'}, line 1" in str(error)


@pytest.mark.parametrize("lines", [[], ["", " "], [{"_provenance": {}}]])
def test_file_without_a_question_is_refused(tmp_path, lines):
    assert "holds no question. Each line is one" in str(refused(write(tmp_path / "a.jsonl", *lines)))


def test_file_with_too_many_questions_is_refused(tmp_path):
    rows = [{**ROW, "question": f"Who is {number}?"} for number in range(3)]
    assert "more than 2 questions" in str(refused(write(tmp_path / "a.jsonl", *rows), max_rows=2))
