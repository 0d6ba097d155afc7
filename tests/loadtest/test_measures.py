from __future__ import annotations

import numpy as np
import pytest

from loadtest.measures import (
    Chunk,
    Served,
    Slo,
    gaps_s,
    goodput_per_s,
    itl_s,
    meets,
    percentile,
    percentiles,
    tpot_s,
    ttft_s,
)

CHUNKS = (Chunk(0.1, ""), Chunk(0.4, "Vol"), Chunk(0.5, "umes"), Chunk(0.55, ""), Chunk(0.8, " stay."))


def test_ttft_is_the_arrival_of_the_first_chunk_with_content() -> None:
    assert ttft_s(CHUNKS) == 0.4


def test_ttft_does_not_exist_when_no_chunk_has_content() -> None:
    with pytest.raises(ValueError, match="no chunk has content"):
        ttft_s((Chunk(0.1, ""),))


def test_gaps_skip_chunks_without_content() -> None:
    assert gaps_s(CHUNKS) == pytest.approx([0.1, 0.3])
    assert itl_s(CHUNKS) == pytest.approx(0.2)


def test_itl_does_not_exist_for_one_chunk() -> None:
    assert itl_s((Chunk(0.4, "Yes."),)) is None


def test_tpot_leaves_out_the_first_token_and_its_delay() -> None:
    assert tpot_s(latency_s=2.4, ttft_s=0.4, output_tokens=11) == pytest.approx(0.2)


@pytest.mark.parametrize("output_tokens", [0, 1])
def test_tpot_does_not_exist_below_two_tokens(output_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"output_tokens={output_tokens}"):
        tpot_s(1.0, 0.5, output_tokens)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (Served(1.0, 0.1), True),
        (Served(1.01, 0.1), False),
        (Served(1.0, 0.11), False),
        (Served(1.0, None), True),
        (Served(1.01, None), False),
    ],
)
def test_an_answer_meets_the_objective_when_both_limits_hold(answer: Served, kept: bool) -> None:
    assert meets(answer, Slo(ttft_s=1.0, tpot_s=0.1)) is kept


def test_goodput_counts_only_answers_that_meet_the_objective() -> None:
    answers = [Served(0.2, 0.05), Served(2.0, 0.05), Served(0.2, 0.5), Served(0.3, None)]
    assert goodput_per_s(answers, Slo(1.0, 0.1), duration_s=4.0) == 0.5


def test_goodput_needs_a_positive_duration() -> None:
    with pytest.raises(ValueError, match="duration_s=0"):
        goodput_per_s([], Slo(1.0, 0.1), duration_s=0)


def test_percentiles_interpolate_between_neighbours() -> None:
    found = percentiles([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found == pytest.approx({"p20": 1.8, "p50": 3.0, "p80": 4.2, "p95": 4.8, "p99": 4.96})


def test_percentiles_of_one_value_are_that_value() -> None:
    assert set(percentiles([7.0]).values()) == {7.0}
    assert percentile(np.array([7.0]), 20) == 7.0


def test_percentile_of_nothing_does_not_exist() -> None:
    with pytest.raises(ValueError, match="p95 of no values"):
        percentile([], 95)
