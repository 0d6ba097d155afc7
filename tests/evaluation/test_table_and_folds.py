"""Outcomes as arrays, and folds that keep groups together and sources apart evenly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_outcomes import decided_by_first, made

from engine.errors import TrainingDataError
from engine.evaluation.folds import make_folds
from engine.evaluation.intervals import grouped_interval
from engine.evaluation.outcomes import ArmOutcome
from engine.evaluation.table import make_table

FAILED = ArmOutcome(None, "exact_match", None, error="timed out")


def test_table_holds_what_the_questions_do():
    outcomes = made(4, decided_by_first, unknown=1.0, with_texts=True)
    table, num_left_out = make_table(outcomes)
    assert (table.arms, table.signals, num_left_out) == (("base", "base+context"), ("s0", "s1", "s2"), 0)
    assert table.has_context.tolist() == [False, True]
    assert np.isnan(table.values[:, 2]).all()
    assert table.values[1, 0] == outcomes.questions[1].signals["s0"]
    assert table.quality[2, 1] == outcomes.questions[2].arms["base+context"].quality
    assert table.tokens.tolist() == [[60.0, 60.0]] * 4
    assert table.texts[3] == outcomes.questions[3].question
    assert table.embeddings is None
    assert table.take(np.array([3, 0])).ids == ("q3", "q0")


def test_question_that_an_arm_did_not_answer_is_left_out_and_counted():
    outcomes = made(20, decided_by_first)
    first = replace(outcomes.questions[0], arms={**outcomes.questions[0].arms, "base": FAILED})
    table, num_left_out = make_table(replace(outcomes, questions=(first, *outcomes.questions[1:])))
    assert (len(table), num_left_out, table.ids[0]) == (19, 1, "q1")


def test_arm_that_answered_few_questions_is_refused_with_the_choice_that_leaves_it_out():
    outcomes = made(20, decided_by_first)
    partly = tuple(
        replace(each, arms={**each.arms, "support": each.arms["base"] if row < 10 else FAILED})
        for row, each in enumerate(outcomes.questions)
    )
    outcomes = replace(outcomes, questions=partly)
    with pytest.raises(TrainingDataError, match=r"arm support answered 50%.*--arms base,base\+context"):
        make_table(outcomes)
    assert make_table(outcomes, ["base+context", "base"])[0].arms == ("base", "base+context")


def test_arm_that_was_not_measured_is_refused_by_name():
    with pytest.raises(TrainingDataError, match=r"has no arm tone. Measured: base, base\+context"):
        make_table(made(3, decided_by_first), ["base", "tone"])


def test_questions_that_share_a_group_or_nearly_a_text_are_one_group():
    outcomes = made(6, decided_by_first)
    texts = ["How do I reset my password today?", "so how do i reset my password today", "why", "how", None, None]
    groups = [None, "g", "g", None, None, None]
    questions = tuple(
        replace(each, question=text, group=group)
        for each, text, group in zip(outcomes.questions, texts, groups, strict=True)
    )
    assert make_table(replace(outcomes, questions=questions))[0].groups.tolist() == [0, 0, 0, 3, 4, 5]


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 120), st.integers(1, 4), st.integers(0, 5))
def test_folds_hold_whole_groups_and_even_shares_of_each_source(num, group_size, seed):
    table, _ = make_table(made(num, decided_by_first, sources=("a", "b"), group_size=group_size))
    folds = make_folds(table, 5, seed)
    for group in np.unique(table.groups):
        assert len({*folds[table.groups == group].tolist()}) == 1
    if group_size == 1:
        for source in ("a", "b"):
            counts = Counter(fold for fold, each in zip(folds.tolist(), table.sources, strict=True) if each == source)
            assert max(counts.values()) - min(counts.values()) <= 1
    assert make_folds(table, 5, seed).tolist() == folds.tolist()


def test_another_seed_draws_other_folds_and_another_question_moves_few():
    table, _ = make_table(made(100, decided_by_first))
    assert make_folds(table, 5, 0).tolist() != make_folds(table, 5, 1).tolist()


def test_fewer_groups_than_folds_are_refused():
    table, _ = make_table(made(40, decided_by_first, group_size=10))
    with pytest.raises(TrainingDataError, match="in 4 groups; at least 5"):
        make_folds(table, 5, 0)


def test_interval_over_groups_is_wider_where_groups_agree():
    values = np.repeat(np.random.default_rng(0).normal(size=50), 10)
    alone = grouped_interval(values, np.arange(500))
    together = grouped_interval(values, np.repeat(np.arange(50), 10))
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
    assert grouped_interval(values[:290], np.repeat(np.arange(29), 10)) is None


def test_interval_of_single_questions_is_that_of_drawing_them_with_replacement():
    draw = np.random.default_rng(1)
    values = draw.choice([-1.0, 0.0, 1.0], size=200)
    means = [draw.choice(values, size=200).mean() for _ in range(10_000)]
    assert grouped_interval(values, np.arange(200)) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=0.02)
