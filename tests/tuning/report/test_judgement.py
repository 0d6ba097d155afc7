"""What a reader is told first: each verdict for its reason, and intervals that hold what they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_outcome import answered, baseline_of, history, labelled, outcome_of, run_of

from engine.tuning.report.comparison import compare, judging_evaluation
from engine.tuning.report.judgement import judge
from engine.tuning.report.learning import learning_of


def right(num: int, of: int = 100) -> list[bool]:
    return [place < num for place in range(of)]


def test_adapter_is_judged_by_rows_that_did_not_choose_it_where_there_are_any():
    validation, evaluation = labelled(right(90), name="validation"), labelled(right(80))
    assert judging_evaluation(outcome_of(validation, evaluation)) is evaluation
    assert judging_evaluation(outcome_of(validation)) is validation
    assert judging_evaluation(outcome_of(validation, replace(evaluation, predictions=()))) is validation
    assert judging_evaluation(outcome_of()) is None


def test_models_are_compared_on_the_rows_that_both_answered():
    evaluation = labelled(right(90), right(20))
    unasked = [replace(each, before=None) for each in evaluation.predictions[50:]]
    evaluation = replace(evaluation, predictions=(*evaluation.predictions[:50], *unasked))
    whole = baseline_of(evaluation, right(70))
    baselines = (whole, replace(whole, answers={"evaluation": ("card",)}))
    base, words = compare(outcome_of(evaluation, baselines=baselines), evaluation)
    assert (base.kind, base.num_rows, base.adapter, base.other) == ("base", 50, 1.0, 0.4)
    assert (words.kind, words.num_rows, words.adapter, words.other, words.seconds) == ("baseline", 100, 0.9, 0.7, 2.0)


@pytest.mark.parametrize(
    ("after", "before", "words", "code", "said"),
    [
        (90, 20, None, "learned", "accuracy 0.900 on 100 evaluation rows, where the base model has 0.200"),
        (90, 20, 60, "learned", "It learned the task"),
        (90, 20, 89, "matched", "a model that trains in 2 s is as good as far as these rows can tell"),
        (60, 20, 90, "beaten", "trains in 2 s is better: TF-IDF + LR has accuracy 0.900, the adapter 0.600"),
        (22, 20, None, "not_learned", "It did not learn the task: accuracy 0.220"),
        (20, 60, None, "worse", "The adapter is worse than the base model: accuracy 0.200"),
    ],
)  # fmt: skip
def test_verdict_is_said_in_a_sentence(after, before, words, code, said):
    evaluation = labelled(right(after), right(before))
    baselines = () if words is None else (baseline_of(evaluation, right(words)),)
    judgement = judge(outcome_of(evaluation, baselines=baselines))
    assert judgement.code == code, judgement.headline
    assert said in judgement.headline
    assert "95 % interval" in judgement.reasons[0]


def test_best_of_several_models_decides():
    evaluation = labelled(right(80), right(20))
    baselines = (baseline_of(evaluation, right(50), "weak"), baseline_of(evaluation, right(99), "strong"))
    judgement = judge(outcome_of(evaluation, baselines=baselines))
    assert judgement.code == "beaten"
    assert "strong has accuracy 0.990" in judgement.headline


def test_without_the_base_model_only_the_others_are_compared_with():
    evaluation = labelled(right(90))
    alone = judge(outcome_of(evaluation))
    assert (alone.code, alone.comparisons) == ("unknown", ())
    assert "not compared with the base model" in alone.headline
    assert judge(outcome_of(evaluation, baselines=(baseline_of(evaluation, right(50)),))).code == "learned"


@pytest.mark.parametrize("num", [1, 29])
def test_too_few_rows_say_nothing(num):
    judgement = judge(outcome_of(labelled(right(num, num), right(0, num))))
    assert judgement.code == "unknown"
    assert "too few rows" in judgement.headline


def test_run_without_any_evaluation_says_so():
    assert judge(outcome_of()).headline == "Nothing can be said: the adapter was evaluated on no rows."


def test_answers_are_compared_by_their_share_of_the_metric():
    judgement = judge(outcome_of(answered([(0.1, 0.75)] * 50), task="qa", context="gold"))
    assert (
        judgement.headline
        == "It learned the task: token F1 0.750 on 50 validation rows, where the base model has 0.100."
    )
    assert any("These rows also chose the adapter" in reason for reason in judgement.reasons)


def test_forced_training_and_overfitting_are_among_the_reasons():
    points = history((1.0, 0.9), (0.4, 0.7), (0.1, 1.1), (0.01, 1.6), metrics=(0.5, 0.8, 0.7, 0.6))
    outcome = outcome_of(
        labelled(right(90), right(20)), is_forced=True, guard={"verdict": "refuse"}, run=run_of(points, best=1)
    )
    reasons = " ".join(judge(outcome).reasons)
    assert "--force trained on it anyway" in reasons
    assert (
        "from step 20 to 40 the validation loss rose from 0.700 to 1.600 while the training loss fell from 0.400 to "
        "0.010. The adapter of step 20 is kept, not the last one." in reasons
    )


@pytest.mark.parametrize(
    ("losses", "is_overfit"),
    [
        ([(1.0, 0.9), (0.5, 0.6), (0.2, 0.9)], True),
        ([(1.0, 0.9), (0.5, 0.6), (0.2, 0.61)], False),
        ([(1.0, 0.9), (0.5, 0.6), (0.9, 0.9)], False),
        ([(1.0, 0.9)], False),
    ],
)
def test_overfitting_is_a_validation_loss_that_rises_beyond_noise_while_the_training_loss_falls(losses, is_overfit):
    learning = learning_of(run_of(history(*losses)))
    assert learning.is_overfit is is_overfit
    assert learning.last_gap == pytest.approx(losses[-1][1] - losses[-1][0])


def test_run_that_ended_before_its_first_evaluation_has_nothing_to_tell_of_learning():
    assert learning_of(run_of(())) is None
