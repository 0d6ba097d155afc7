"""Samples and subsets of rows, and exceptions among them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tuning.tuning_files import labelled, write_rows

from engine.tuning.data.examples import read_examples
from engine.tuning.data.rows import LabelRow
from engine.tuning.run.rows import join_exceptions, sample_rows, subset_rows


def rows(count: int, rare: int = 10) -> list[LabelRow]:
    """One row of `rare` is of label b."""
    return [LabelRow(line, f"text {line}", "b" if line % rare == 0 else "a") for line in range(1, count + 1)]


def test_sample_has_each_label_by_its_share_and_keeps_the_order():
    drawn = sample_rows(rows(1000), 100, seed=1)
    assert Counter(row.label for row in drawn) == {"a": 90, "b": 10}
    assert [row.line for row in drawn] == sorted(row.line for row in drawn)
    assert drawn == sample_rows(rows(1000), 100, seed=1) != sample_rows(rows(1000), 100, seed=2)
    assert sample_rows(rows(50), 100, seed=1) == rows(50)
    assert sample_rows(rows(500), None, seed=1) == rows(500)


def test_sample_has_twenty_exceptions_where_there_are_so_many():
    marked = frozenset(range(1, 1000, 20))
    drawn = sample_rows(rows(1000), 100, seed=1, exceptions=marked)
    assert sum(row.line in marked for row in drawn) == 20
    few = frozenset({3, 5})
    assert few <= {row.line for row in sample_rows(rows(1000), 100, seed=1, exceptions=few)}


def test_smaller_subset_is_part_of_the_larger_one():
    subsets = [subset_rows(rows(300, rare=2), size, seed=4) for size in (2, 10, 299)]
    for small, large in pairwise(subsets):
        assert set(small) < set(large)
    assert Counter(row.label for row in subsets[1]) == {"a": 5, "b": 5}
    assert {row.label for row in subsets[0]} == {"a", "b"}


def test_exceptions_follow_the_data_with_lines_of_their_own_and_copies_are_left_out(tmp_path: Path):
    data, odd = labelled(30), labelled(6, seed=8)
    alone = read_examples(write_rows(tmp_path / "data.jsonl", data))
    marked = read_examples(write_rows(tmp_path / "odd.jsonl", odd))
    copied = read_examples(write_rows(tmp_path / "both.jsonl", [*data, *odd]))
    assert join_exceptions(alone, None) == (alone, frozenset())
    joined, lines = join_exceptions(alone, marked)
    assert lines == frozenset(range(31, 37))
    assert [row.content() for row in joined.rows] == [*data, *odd]
    again, _ = join_exceptions(copied, marked)
    assert [row.content() for row in again.rows] == [*data, *odd]
    assert joined.digest not in (alone.digest, copied.digest)
    assert joined == replace(alone, rows=joined.rows, digest=joined.digest)
