"""Named columns: they join, select and survive JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.routing.signals.table import SignalTable, joined, table_of

TABLE = SignalTable(("a", "b"), np.array([[1.0, np.nan], [3.0, 4.0]]))


def test_columns_are_found_by_name():
    assert TABLE.column("a").tolist() == [1.0, 3.0]
    with pytest.raises(KeyError, match="no signal is named 'c'; there are: a, b"):
        TABLE.column("c")


def test_selected_columns_that_are_missing_are_unknown():
    chosen = TABLE.select(("b", "new", "a"))
    assert chosen.names == ("b", "new", "a")
    np.testing.assert_array_equal(chosen.values, [[np.nan, np.nan, 1.0], [4.0, np.nan, 3.0]])


def test_tables_of_the_same_questions_join():
    both = joined(TABLE, SignalTable(("c",), np.array([[5.0], [6.0]])))
    assert both.names == ("a", "b", "c")
    np.testing.assert_array_equal(both.values, [[1.0, np.nan, 5.0], [3.0, 4.0, 6.0]])
    with pytest.raises(ValueError, match=r"\[2, 0\] rows"):
        joined(TABLE, SignalTable((), np.empty((0, 0))))


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (("a",), [[1.0, 2.0]], r"values are \(1, 2\), names are 1"),
        (("a", "a"), [[1.0, 2.0]], "signals a occur more than once"),
        (("a", "b"), [[1.0, np.inf]], "signal b is infinite"),
    ],
)
def test_tables_that_make_no_sense_are_refused(names, values, message):
    with pytest.raises(ValueError, match=message):
        SignalTable(names, np.array(values))


def test_rows_that_lack_a_signal_have_it_unknown():
    table = table_of([{"a": 1.0}, {"b": 2.0, "a": None}])
    assert table.names == ("a", "b")
    np.testing.assert_array_equal(table.values, [[1.0, np.nan], [np.nan, 2.0]])


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 4), st.integers(1, 3)),
        elements=st.floats(allow_infinity=False, allow_nan=True),
    )
)
def test_a_table_survives_json(values):
    table = SignalTable(tuple(f"s{place}" for place in range(values.shape[1])), values)
    again = table_of(json.loads(json.dumps(table.rows(), allow_nan=False)))
    assert again.names == table.names
    np.testing.assert_array_equal(again.values, table.values)
