"""The guard as a whole: each verdict for the right reason, and a report that survives JSON."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest

from engine.errors import TrainingDataError
from engine.tuning.data.examples import Examples, read_examples
from engine.tuning.guard.inspect import NUM_ASKED, inspect
from engine.tuning.guard.report import Finding, GuardReport
from engine.tuning.guard.show import report_lines

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def sentence(draw: random.Random, num_words: int = 9) -> str:
    return " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(num_words))


def labelled(num: int, labels: str = "abc", seed: int = 0) -> list[dict[str, object]]:
    draw = random.Random(seed)
    return [{"text": sentence(draw), "label": labels[i % len(labels)]} for i in range(num)]


def questions(num: int, *, with_context: bool = True) -> list[dict[str, object]]:
    draw = random.Random(0)
    rows = []
    for _ in range(num):
        context, answer = sentence(draw, 40), sentence(draw, 2)
        row: dict[str, object] = {"question": sentence(draw), "answers": [answer]}
        rows.append(row | ({"context": f"{context} {answer}."} if with_context else {}))
    return rows


@pytest.fixture
def examples(tmp_path):
    def read(rows, name="data.jsonl", **options) -> Examples:
        file = tmp_path / name
        file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return read_examples(file, **options)

    return read


def finding(report: GuardReport, code: str) -> Finding:
    (found,) = [each for each in report.findings if each.code == code]
    return found


def codes(report: GuardReport) -> list[str]:
    return [each.code for each in report.findings]


def test_varied_examples_are_ok_without_a_finding(examples):
    inspected = inspect(examples(labelled(600)))
    assert inspected.report.verdict == "ok"
    assert inspected.report.findings == ()
    assert (len(inspected.split.train), len(inspected.split.validation)) == (540, 60)


def test_forty_nearly_equal_examples_are_refused_as_near_duplicates(examples):
    rows = [{"text": f"How do I reset my password, user {i}?", "label": "ab"[i % 2]} for i in range(40)]
    report = inspect(examples(rows)).report
    assert report.verdict == "refuse"
    assert report.findings[0].code == "near_duplicates"
    assert "39 rows of 40 (97.5 %) nearly repeat another one, 1 differ" in report.findings[0].reason
    assert "such as lines 1, 2, 3, 4, 5." in report.findings[0].reason
    assert "add examples that differ" in report.findings[0].fix


def test_forty_paraphrases_of_one_question_are_risky_as_too_much_alike(examples):
    starts = ["How do I", "How can I", "What is the way to", "How would I", "Can you tell me how to"]
    ends = ["reset my password", "reset the password", "change my password", "restore my password"]
    rows = [
        {"prompt": f"{start} {end}{mark}", "completion": f"Press the link {start} {end}."}
        for start, end, mark in itertools.product(starts, ends, ["?", " now?"])
    ]
    report = inspect(examples(rows)).report
    assert report.verdict in ("risky", "refuse")
    assert "1 to 8 % are usual" in finding(report, "alike_inputs").reason


@pytest.mark.parametrize(("num", "level", "code"), [(9, "refuse", "too_few"), (40, "risky", "few")])
def test_few_examples_are_refused_or_risky_and_retrieval_is_named(examples, num, level, code):
    report = inspect(examples(labelled(num))).report
    found = finding(report, code)
    assert (found.level, report.verdict) == (level, level)
    assert str(num) in found.reason
    assert "retrieval" in found.fix


def test_validation_that_is_too_small_to_choose_by_is_risky(examples):
    report = inspect(examples(labelled(200, "ab"))).report
    assert codes(report) == ["small_validation"]
    assert "40 rows can be held out" in report.findings[0].reason
    assert report.verdict == "risky"


@pytest.mark.parametrize(("num", "level"), [(1, "note"), (20, "risky"), (200, "refuse")])
def test_same_text_with_two_labels_is_named_by_line_and_graver_the_more_there_are(examples, num, level):
    rows = labelled(600)
    rows += [{"text": row["text"], "label": "b" if row["label"] != "b" else "c"} for row in rows[:num]]
    report = inspect(examples(rows)).report
    found = finding(report, "contradictions")
    assert found.level == level
    assert "line 1 'a', line 601 'b'" in found.reason
    assert "Relabel" in found.fix
    assert report.contradictions.first[0].lines == (1, 601)


def test_labels_with_few_examples_are_named_rarest_first(examples):
    rows = [*labelled(600), *[row | {"label": "rare"} for row in labelled(5, seed=1)]]
    rows += [row | {"label": "rarer"} for row in labelled(2, seed=2)]
    found = finding(inspect(examples(rows)).report, "rare_labels")
    assert (found.level, "2 of 5 labels" in found.reason) == ("risky", True)
    assert "'rarer' (2), 'rare' (5)" in found.reason


def test_one_label_for_nearly_all_rows_is_risky(examples):
    rows = [row | {"label": "yes" if i else "no"} for i, row in enumerate(labelled(400))]
    assert "99.8 % of the rows are 'yes'" in finding(inspect(examples(rows)).report, "one_sided_labels").reason


@pytest.mark.parametrize(("num", "level"), [(1, "note"), (10, "risky"), (60, "refuse")])
def test_evaluation_rows_that_are_trained_on_are_graver_the_more_there_are(examples, num, level):
    rows = labelled(600)
    evaluation = [*labelled(100 - num, seed=1), *rows[:num]]
    report = inspect(examples(rows), evaluation=examples(evaluation, "eval.jsonl")).report
    found = finding(report, "leakage")
    assert found.level == level
    assert f"{num} of 100 evaluation rows" in found.reason
    assert f"line {101 - num} (line 1 of the data)" in found.reason


def test_evaluation_file_of_another_kind_is_refused(examples):
    with pytest.raises(TrainingDataError, match="Evaluate with rows of the kind that is trained on"):
        inspect(examples(labelled(20)), evaluation=examples(questions(5), "eval.jsonl"))


def test_one_answer_to_everything_is_refused(examples):
    rows = [{"prompt": row["text"], "completion": "Please call us."} for row in labelled(300)]
    found = finding(inspect(examples(rows)).report, "one_answer")
    assert found.level == "refuse"
    assert "100.0 % of the rows are answered by 'Please call us.'" in found.reason


def test_questions_say_how_many_contexts_hold_an_answer(examples):
    rows = questions(300)
    rows[0]["answers"] = ["not in there"]
    rows[1] |= {"answers": [], "unanswerable": True}
    report = inspect(examples(rows)).report
    assert report.targets is not None
    assert (report.targets.num_with_context, report.targets.num_in_context) == (300, 298)
    assert report.targets.num_unanswerable == 1
    assert report.verdict == "ok"


def test_mostly_unanswerable_questions_are_risky(examples):
    rows = [row | ({"answers": [], "unanswerable": True} if i % 3 else {}) for i, row in enumerate(questions(300))]
    assert finding(inspect(examples(rows)).report, "mostly_unanswerable").level == "risky"


def test_questions_without_contexts_are_pointed_to_the_knowledge_base(examples):
    report = inspect(examples(questions(600, with_context=False))).report
    found = finding(report, "no_contexts")
    assert (found.level, report.verdict) == ("note", "ok")
    assert "knowledge base" in found.fix


@pytest.mark.parametrize(("num_right", "code"), [(180, "known_already"), (100, None), (10, "unknown_facts")])
def test_what_the_base_model_knows_is_asked_of_a_sample(examples, num_right, code):
    asked = []

    def base_answers(rows):
        asked.extend(rows)
        return [place < num_right for place in range(len(rows))]

    report = inspect(examples(questions(600, with_context=False)), base_answers=base_answers).report
    assert len(asked) == NUM_ASKED == 200
    assert report.base is not None
    assert report.base.share == num_right / 200
    assert [each for each in codes(report) if each != "no_contexts"] == ([code] if code else [])


def test_what_has_no_callable_is_not_measured(examples):
    report = inspect(examples(labelled(100))).report
    assert (report.tokens, report.similarity, report.base, report.leakage) == (None, None, None, None)


def test_encoder_that_finds_paraphrases_everywhere_makes_it_risky(examples):
    def embed(texts):
        return np.ones((len(texts), 4), np.float32)

    report = inspect(examples(labelled(600)), embed=embed).report
    assert codes(report) == ["paraphrases"]


def test_rows_that_are_too_long_are_named_by_line(examples):
    rows = [*labelled(600), {"text": sentence(random.Random(9), 50), "label": "a"}]
    report = inspect(examples(rows), count_tokens=lambda texts: [len(t.split()) for t in texts], max_tokens=20).report
    found = finding(report, "too_long")
    assert found.level == "note"
    assert "1 row (0.2 %) have more than 20 tokens, such as lines 601" in found.reason


def test_bad_rows_that_were_left_out_stay_in_the_report(examples):
    report = inspect(examples([*labelled(600), *[{"text": ""}] * 60], skip_bad=True)).report
    assert finding(report, "bad_rows").level == "risky"
    assert (report.data.num_rows, report.data.num_bad) == (600, 60)
    assert report.data.bad_rows[0].startswith("line 601: lacks 'label'")


def test_report_is_the_same_for_the_same_seed_and_survives_json(examples):
    rows = labelled(300, "ab")
    one, again = (inspect(examples(rows), seed=3).report.to_json() for _ in range(2))
    assert one == again
    assert json.loads(json.dumps(one)) == one
    assert (one["verdict"], one["findings"]) == ("ok", [])
    assert one["data"]["num_rows"] == 300
    assert one["split"] == {"num_train": 250, "num_validation": 50, "num_groups": 300, "seed": 3}


def test_shown_lines_hold_what_was_found_and_end_with_the_verdict(examples):
    rows = labelled(60)
    rows.append(rows[0] | {"label": "c"})
    lines = report_lines(inspect(examples(rows)).report)
    assert lines[-1] == ("verdict", "risky")
    shown = dict(lines)
    assert shown["rows"].startswith("61 used, 0 bad; digest ")
    assert shown["contradictions"] == "2 rows in 1 input"
    assert ("", "lines 1 'a', 61 'c'") in lines
    assert shown["tokens"] == "not counted"
