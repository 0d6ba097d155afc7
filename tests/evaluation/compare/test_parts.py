"""Parts of a comparison by themselves: names of arms, few-shot examples, kept answers, updates, measures of answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from compare_server import card

from engine.errors import SwitchyardError, TrainingDataError
from engine.evaluation.asking import Answer, ShownPassage
from engine.evaluation.compare.contenders import choose_contenders
from engine.evaluation.compare.few_shot import FewShot
from engine.evaluation.compare.kept import key_of, open_answers
from engine.evaluation.compare.measuring import arm_figures, make_sheet
from engine.evaluation.compare.pairing import MCNEMAR, SIGN_FLIP, compare_pairs
from engine.evaluation.compare.searching import holds_answer
from engine.evaluation.compare.updating import read_updates
from engine.evaluation.questions import Question
from engine.tuning.data.examples import read_examples


def names(asked=None, cards=(), **flags):
    known = {"has_passages": True, "has_examples": False}
    return [each.name for each in choose_contenders(asked, cards, **(known | flags))]


def test_all_arms_are_those_that_make_sense():
    cards = [card("bot"), card("intents", task="classify"), card("idle", loaded=False)]
    assert names(None, cards) == ["base", "base+context", "bot", "bot+context", "intents", "auto"]
    assert names(None, cards, has_passages=False, has_examples=True) == ["base", "bot", "intents", "few-shot"]
    assert names(["intents+context", "base", "base"], cards) == ["intents+context", "base"]


def test_what_is_no_name_of_an_arm_is_refused():
    with pytest.raises(ValueError, match="is no arm; write base"):
        names(["base+"])
    with pytest.raises(ValueError, match="no arm is named"):
        names([])


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_few_shot_shows_the_most_similar_examples_the_nearest_last(tmp_path):
    rows = [
        {"text": "my card was stolen", "label": "lost_card"},
        {"text": "my card has not arrived yet", "label": "card_arrival"},
        {"text": "exchange rate of the euro", "label": "rates"},
        {"text": "???", "label": "rates"},
    ]
    few_shot = FewShot(read_examples(write(tmp_path / "train.jsonl", rows)), 2)
    turns = few_shot.turns("when has my card arrived")
    assert [turn["content"] for turn in turns] == [
        "my card was stolen",
        "lost_card",
        "my card has not arrived yet",
        "card_arrival",
    ]
    assert len(few_shot.turns("x", 1)) == 2
    assert "my card was stolen" not in [turn["content"] for turn in few_shot.turns("My card was stolen!")]
    assert [q.id for q in few_shot.leaked([Question("a", "MY CARD was stolen"), Question("b", "my card")])] == ["a"]


def test_few_shot_refuses_examples_that_cannot_be_shown(tmp_path):
    rows = [{"question": "a " * 2_000, "answers": ["b"]}]
    with pytest.raises(TrainingDataError, match="no example is of at most 2,000 characters"):
        FewShot(read_examples(write(tmp_path / "train.jsonl", rows)))


ANSWER = Answer("Ada", "rag", passages=(ShownPassage("c", "d", "Ada.", 0, 4, 0.5),), timings_ms={"ttft": 1.0})


def test_answers_are_kept_as_they_were_and_a_broken_line_loses_nothing_else(tmp_path):
    with open_answers(tmp_path) as kept:
        kept.add("one", ANSWER)
        kept.same_version(9, 4)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes() + b'{"key": "two", "ans')
    with open_answers(tmp_path) as kept:
        assert (kept.get("one"), kept.get("two"), kept.version(9), kept.version(5)) == (ANSWER, None, 4, 5)
        kept.add("three", ANSWER)
    with open_answers(tmp_path) as kept:
        assert kept.get("three") == ANSWER
    with open_answers(tmp_path, restart=True) as kept:
        assert kept.get("one") is None


def test_a_folder_is_held_by_one_comparison(tmp_path):
    with (
        open_answers(tmp_path),
        pytest.raises(SwitchyardError, match="another `switchyard compare`"),
        open_answers(tmp_path),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(SwitchyardError, match="cannot be made"), open_answers(tmp_path / "file"):
        pass


def test_a_key_changes_with_each_of_its_parts():
    assert key_of(a=1, b="x") == key_of(b="x", a=1) != key_of(a=1, b="y")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "holds no update"),
        ("[1]", "u.jsonl:1: is list, not an object"),
        ('{"id": "a", "text": "b", "question": "c", "answer_before": "d"}', "u.jsonl:1: answer_after: field required"),
        (
            '{"id": "a", "text": "b", "question": "c", "answer_before": "The D.", "answer_after": "d"}',
            "answer_before and answer_after are the same",
        ),
    ],
)
def test_a_bad_update_is_named_with_its_line(tmp_path, line, said):
    file = tmp_path / "u.jsonl"
    file.write_text(line)
    with pytest.raises(TrainingDataError, match=said):
        read_updates(file)


def sheet(questions, **texts):
    contenders = choose_contenders(list(texts), [card("bot")], has_passages=True, has_examples=False)
    answers = {
        (arm, q.id): text if isinstance(text, Answer) else Answer(text, latency_ms=float(place))
        for arm, said in texts.items()
        for place, (q, text) in enumerate(zip(questions, said, strict=True))
    }
    return make_sheet(questions, contenders, answers)


LABELLED = [Question(f"q{n}", "?", label="card_arrival" if n % 2 else "lost_card") for n in range(10)]


def test_labels_have_accuracy_macro_f1_and_a_share_of_valid_ones():
    made = sheet(LABELLED, base=["Lost card."] * 9 + ["I think it is lost"], bot=[q.label for q in LABELLED])
    labels = frozenset({"lost_card", "card_arrival", "rates"})
    base = arm_figures(made, 0, labels=labels, minutes=None, untrusted=None)
    assert (base.metrics["accuracy"], base.valid, base.quality.value) == (0.5, 0.9, 0.5)
    assert base.metrics["macro_f1"] == pytest.approx((2 * 5 / (5 + 9)) / 2)
    assert arm_figures(made, 1, labels=labels, minutes=1.0, untrusted=None).metrics["macro_f1"] == 1.0


def test_a_failed_answer_counts_as_nothing_and_is_counted():
    made = sheet(LABELLED[:2], base=[Answer(error="too long"), "card arrival"])
    found = arm_figures(made, 0, labels=frozenset(), minutes=None, untrusted=None)
    assert (found.quality.value, found.num_failed, found.first_failure) == (0.5, 1, "too long")
    assert found.p50_ms == 1.0


def test_right_or_wrong_answers_are_tested_by_mcnemar_and_grades_or_groups_by_signs():
    def test_of(questions, right):
        made = sheet(questions, base=["no"] * len(questions), bot=right)
        return compare_pairs(made)[0].test

    assert test_of(LABELLED, [q.label for q in LABELLED]) == MCNEMAR
    grouped = [Question(q.id, q.question, label=q.label, group="one") for q in LABELLED]
    assert test_of(grouped, [q.label for q in LABELLED]) == SIGN_FLIP
    graded = [Question(f"q{n}", "?", ("Ada Lovelace",)) for n in range(10)]
    assert test_of(graded, ["Ada"] * 10) == SIGN_FLIP


def test_questions_of_one_group_show_less_than_as_many_alone():
    alone = [Question(f"q{n}", "?", label="a") for n in range(64)]
    grouped = [Question(q.id, q.question, label="a", group=f"g{n // 16}") for n, q in enumerate(alone)]
    (one,) = compare_pairs(sheet(alone, base=["b"] * 64, bot=["a"] * 64))
    (other,) = compare_pairs(sheet(grouped, base=["b"] * 64, bot=["a"] * 64))
    assert one.finding == "worse" and other.finding == "too few"
    assert other.detectable is None and np.isfinite(one.detectable)


def test_an_answer_stands_in_a_passage_as_whole_words():
    question = Question("q", "?", ("The 12", "..."))
    assert holds_answer(question, ["It costs 12."]) and not holds_answer(question, ["It costs 120."])
