"""The knee of servers that are made up here."""

from __future__ import annotations

import pytest

from engine.errors import SwitchyardError
from loadtest.open_loop.knee import search_knee


def rates(found):
    return [step.rate_s for step in found.steps]


def test_search_ends_when_two_steps_in_a_row_brought_no_more():
    found = search_knee(lambda rate_s: min(rate_s, 2.0), 0.5)
    assert found.goodput_s == 2.0
    assert rates(found) == [0.5, 0.75, 1.12, 1.69, 2.53, 3.8, 5.7]


def test_one_unlucky_step_is_not_the_knee():
    found = search_knee(lambda rate_s: 0.2 if rate_s == 0.75 else min(rate_s, 2.0), 0.5)
    assert found.goodput_s == 2.0


def test_goodput_that_falls_beyond_the_knee_is_not_what_is_taken():
    found = search_knee(lambda rate_s: rate_s if rate_s < 1.5 else 0.1, 0.5)
    assert found.goodput_s == 1.12


def test_server_that_answers_nothing_in_time_has_no_knee():
    with pytest.raises(SwitchyardError, match=r"within the objective at 0\.5/s or above\. Begin lower"):
        search_knee(lambda rate_s: 0.0, 0.5)


def test_knee_that_was_not_reached_is_not_told():
    with pytest.raises(SwitchyardError, match=r"goodput still grew at .*--knee-from"):
        search_knee(lambda rate_s: rate_s, 0.5)
