"""Shapes read from one line, and arrivals drawn for them."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from engine.errors import ConfigError
from loadtest.open_loop.arrivals import MAX_ARRIVALS, RAMP_PARTS, draw, parse_shape


def rates(text):
    return [(part.start, part.end, part.duration_s) for part in parse_shape(text).parts]


def test_steps_share_the_time_that_the_last_names():
    assert rates("steps:0.5,1,2,4x20s") == [(rate, rate, 20.0) for rate in (0.5, 1.0, 2.0, 4.0)]
    assert rates("steps:1,2") == [(1.0, 1.0, 30.0), (2.0, 2.0, 30.0)]
    assert rates("steps:1x5s,2x10s") == [(1.0, 1.0, 5.0), (2.0, 2.0, 10.0)]


def test_parts_of_a_spike_have_times_of_their_own():
    assert rates("spike:1,10x60s,2x1m") == [(1.0, 1.0, 30.0), (10.0, 10.0, 60.0), (2.0, 2.0, 60.0)]


def test_ramp_is_cut_into_parts_that_meet():
    parts = parse_shape("ramp:1,6x100s").parts
    assert len(parts) == RAMP_PARTS and parts[0].start == 1.0 and parts[-1].end == 6.0
    assert all(one.end == other.start for one, other in itertools.pairwise(parts))
    assert sum(part.duration_s for part in parts) == pytest.approx(100)


def test_only_a_shape_that_rises_throughout_has_a_knee_to_look_for():
    assert parse_shape("steps:1,2,4").rises and parse_shape("ramp:1,2x10s").rises
    assert not any(parse_shape(text).rises for text in ("spike:1,4,1", "constant:2x10s", "ramp:2,1x10s", "steps:1,1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wave:1,2", "is not a shape; shapes are steps:"),
        ("steps:1,two", "'two' is not RATE or RATExTIME"),
        ("steps:1,-2", "'-2' is not RATE or RATExTIME"),
        ("steps:0,1", "'0' must be above 0"),
        ("steps:", "'' is not RATE"),
        ("constant:2x0s", "must be above 0"),
        ("constant:2", "one rate and a time"),
        ("spike:1,2", "three rates with the highest in the middle"),
        ("spike:3,2,1", "three rates with the highest in the middle"),
        ("ramp:1,2", "two rates and a time"),
        ("constant:9000x60m", f"at most {MAX_ARRIVALS:,} are sent in one run"),
        ("constant:nanx1s", "is not RATE"),
    ],
)
def test_a_bad_shape_is_refused_with_what_is_wrong(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_shape(text)
    assert message in str(caught.value)


def test_even_arrivals_come_at_the_rate_of_each_part():
    drawn = list(draw(parse_shape("steps:1x4s,2x3s"), "even", seed=0))
    assert [each.at_s for each in drawn] == pytest.approx([1, 2, 3, 4, 4.5, 5, 5.5, 6, 6.5, 7])
    assert Counter(each.part for each in drawn) == {0: 4, 1: 6}


def test_even_arrivals_of_a_ramp_follow_its_integral():
    drawn = [each.at_s for each in draw(parse_shape("ramp:1,3x10s"), "even", seed=0)]
    # The n-th is due when t + t^2 / 10 = n.
    assert len(drawn) == 20
    assert [at_s + at_s**2 / 10 for at_s in drawn] == pytest.approx(list(range(1, 21)))


def test_poisson_arrivals_are_those_of_the_seed_in_order_and_in_their_parts():
    shape = parse_shape("steps:5,50x20s")
    one, same, other = (list(draw(shape, "poisson", seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert all(earlier.at_s <= later.at_s for earlier, later in itertools.pairwise(one))
    assert all(20 * each.part <= each.at_s <= 20 * each.part + 20 for each in one)


def test_poisson_gaps_are_exponential_at_the_rate():
    at_s = [each.at_s for each in draw(parse_shape("constant:20x1000s"), "poisson", seed=3)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(at_s)]
    assert len(at_s) == pytest.approx(20_000, rel=0.03)
    # An exponential's deviation equals its mean, and 1/e of it lies above.
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_gaps_say_nothing_of_what_else_is_drawn_with_the_seed():
    at_s = [0.0, *(each.at_s for each in draw(parse_shape("constant:10x1000s"), "poisson", seed=5))]
    kinds = random.Random(5)
    gaps = {True: [], False: []}
    for earlier, later in itertools.pairwise(at_s):
        gaps[kinds.random() < 0.5].append(later - earlier)
    assert sum(gaps[True]) / len(gaps[True]) == pytest.approx(sum(gaps[False]) / len(gaps[False]), rel=0.1)
