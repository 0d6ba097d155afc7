"""Splits: nothing of one group on both sides, labels in proportion, the same draw everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tuning.data.rows import LabelRow, QuestionRow, Row
from engine.tuning.splits import MAX_VALIDATION, row_groups, split_rows, validation_share


@st.composite
def labelled_rows(draw: st.DrawFn) -> tuple[list[Row], list[int]]:
    """Rows of any labels and groups, and clusters as the guard names them: by their first row."""
    num = draw(st.integers(1, 80))
    rows: list[Row] = []
    first: dict[int, int] = {}
    clusters = []
    for place in range(num):
        label = draw(st.sampled_from("abc"))
        group = draw(st.none() | st.sampled_from(["x", "y", "z"]))
        rows.append(LabelRow(place + 1, f"text {place}", label, group))
        clusters.append(first.setdefault(draw(st.integers(0, num)), place))
    return rows, clusters


@st.composite
def question_rows(draw: st.DrawFn) -> tuple[list[Row], list[int]]:
    names = st.none() | st.sampled_from(["p", "q", "r", "s"])
    num = draw(st.integers(1, 60))
    rows: list[Row] = [
        QuestionRow(place + 1, f"question {place}", ("a",), context=draw(names), document=draw(names))
        for place in range(num)
    ]
    return rows, list(range(num))


@given(labelled_rows() | question_rows(), st.integers(0, 5))
def test_no_group_is_on_both_sides_and_every_row_is_on_one(drawn, seed):
    rows, clusters = drawn
    split = split_rows(rows, clusters, seed=seed)
    assert sorted(split.train + split.validation) == list(range(len(rows)))
    assert split.train, "something is left to train on"
    held_out = set(split.validation)
    for one in range(len(rows)):
        for other in range(one):
            if _belong_together(rows[one], rows[other]) or clusters[one] == clusters[other]:
                assert split.groups[one] == split.groups[other]
                assert (one in held_out) == (other in held_out)


def _belong_together(one: Row, other: Row) -> bool:
    names = ("group", "document", "context")
    return any(
        getattr(one, name, None) is not None and getattr(one, name, None) == getattr(other, name, None)
        for name in names
    )


def rows_of(**counts: int) -> list[Row]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [LabelRow(place + 1, f"{label} number {place}", label) for place, label in enumerate(labels)]


def test_every_label_gives_the_same_share_to_validation():
    rows = rows_of(a=1000, b=400, c=100)
    split = split_rows(rows, range(len(rows)), seed=0)
    held_out = [rows[place].target for place in split.validation]
    assert {label: held_out.count(label) for label in "abc"} == {"a": 100, "b": 40, "c": 10}


def test_split_is_the_same_for_a_seed_and_another_for_another():
    rows = rows_of(a=200, b=200)
    one, again, other = (split_rows(rows, range(400), seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.validation != other.validation


def test_rows_keep_their_side_when_others_are_added():
    rows, more = rows_of(a=1000), rows_of(a=1020)
    before = set(split_rows(rows, range(1000), seed=0).validation)
    after = {place for place in split_rows(more, range(1020), seed=0).validation if place < 1000}
    assert len(before & after) >= 95


def test_label_with_few_examples_still_has_one_in_validation_and_one_with_two_has_none():
    rows = rows_of(common=300, rare=3, single=1, double=2)
    held_out = {rows[place].target for place in split_rows(rows, range(306), seed=0).validation}
    assert held_out == {"common", "rare"}


def test_large_cluster_stays_in_training_where_it_would_exceed_validation():
    rows = rows_of(a=100)
    clusters = [0] * 60 + list(range(60, 100))
    split = split_rows(rows, clusters, seed=0)
    assert set(range(60)) <= set(split.train)
    assert len(split.validation) == 20


def test_one_of_two_documents_is_held_out_and_an_only_one_is_not():
    def questions(*documents: str) -> list[Row]:
        return [QuestionRow(i + 1, f"q{i}", ("a",), document=document) for i, document in enumerate(documents)]

    two = split_rows(questions(*["x"] * 60, *["y"] * 40), range(100), seed=0)
    assert two.validation == tuple(range(60, 100))
    assert split_rows(questions(*["x"] * 100), range(100), seed=0).validation == ()


def test_group_grows_through_rows_that_share_a_document_and_rows_that_share_a_cluster():
    rows: list[Row] = [
        QuestionRow(1, "q1", ("a",), document="x"),
        QuestionRow(2, "q2", ("a",), document="x"),
        QuestionRow(3, "q2", ("a",), document="y"),
        QuestionRow(4, "q4", ("a",), document="z"),
    ]
    assert row_groups(rows, [0, 1, 1, 3]) == [0, 0, 0, 3]


@pytest.mark.parametrize(
    ("num_rows", "num_validation"),
    [(40, 8), (200, 40), (250, 50), (400, 50), (1_000, 100), (20_000, 2_000), (200_000, MAX_VALIDATION)],
)
def test_validation_takes_a_tenth_more_of_few_rows_and_less_of_many(num_rows, num_validation):
    assert round(validation_share(num_rows) * num_rows) == num_validation


def test_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"share 0.9 is not allowed"):
        split_rows(rows_of(a=4), range(4), seed=0, share=0.9)
