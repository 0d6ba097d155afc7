"""The router's bench: outcomes of a known truth replayed, and decisions of a router that does apply."""

from __future__ import annotations

import numpy as np
import pytest
from made_outcomes import decided_by_first, decided_by_nothing, made

from engine.evaluation.outcomes import write_outcomes
from loadtest import bench_router
from loadtest.bench_format import OURS
from loadtest.router.overhead import BATCHES, made_requests, made_router, measure_overhead
from loadtest.router.replay import ALWAYS_RAG, LATENCY, QUALITY, replay


@pytest.fixture(scope="module")
def clear():
    """Outcomes that a signal decides: 0.85 by the right arm, 0.25 by the other, in groups of two.

    One of the two sources is twice as large as the other.
    """
    outcomes = made(600, decided_by_first, group_size=2, sources=("docs", "docs", "chat"))
    return replay(outcomes, num_resamples=60)


def value(found, case, system, metric):
    (row,) = [row for row in found.rows if (row.case, row.system, row.metric) == (case, system, metric)]
    return row


def ratio(found, case, other):
    (each,) = [each for each in found.ratios if (each.case, each.ours_over) == (case, other)]
    return each


def test_route_that_can_be_learned_is_worth_more_than_the_best_single_arm(clear):
    assert value(clear, QUALITY, OURS, "quality").value == pytest.approx(0.84, abs=0.06)
    assert value(clear, QUALITY, "best single arm", "quality").value == pytest.approx(0.55, abs=0.06)
    found = ratio(clear, QUALITY, "best single arm")
    assert found.metric == "quality"
    assert 1.3 < found.p20 < found.value < found.p80 < 1.8
    assert value(clear, QUALITY, OURS, "headroom").value > 0.5
    assert clear.extra[f"verdict, {QUALITY}"].startswith("Learned")


def test_latency_is_compared_with_passages_for_every_question(clear):
    assert value(clear, LATENCY, ALWAYS_RAG, "context_rate").value == 1.0
    routed, rag = (value(clear, LATENCY, system, "p50_ms").value for system in (OURS, ALWAYS_RAG))
    assert ratio(clear, LATENCY, ALWAYS_RAG).value == pytest.approx(rag / routed)
    assert ratio(clear, LATENCY, ALWAYS_RAG).value > 1


def test_share_of_the_time_that_passages_for_every_question_take_is_said_for_each_objective(clear):
    said = clear.extra["p50 latency, at most 0.6 of always rag's"]
    assert [*said] == ["objective quality", "objective latency"]
    for case, words in zip((QUALITY, LATENCY), said.values(), strict=True):
        routed, rag = (value(clear, case, system, "p50_ms").value for system in (OURS, ALWAYS_RAG))
        share = value(clear, case, OURS, "p50_of_always_rag").value
        assert share == pytest.approx(routed / rag)
        assert words.startswith(f"{'yes' if share <= 0.6 else 'no'}: {share:.3f} (95 % interval 0.")
        assert words.endswith(f"{routed:,.0f} ms of {rag:,.0f} ms")


def test_figures_over_all_questions_are_means_of_those_of_the_sources(clear):
    for system in (OURS, "best single arm", ALWAYS_RAG):
        means = [value(clear, f"{QUALITY}, {source}", system, "quality").value for source in ("docs", "chat")]
        assert value(clear, QUALITY, system, "quality").value == pytest.approx(np.mean(means))
        # Two thirds of the questions are of docs.
        assert abs(means[0] - means[1]) > 1e-3
    assert clear.extra["outcomes"]["sources, counted alike"] == 2


def test_every_source_has_its_difference_to_the_best_single_arm_and_whether_one_lies_below_is_said(clear):
    assert clear.extra[f"sources, {QUALITY}"] == "no source lies below the best single arm beyond its interval"
    by_source = clear.extra[f"differences by source, {QUALITY}"]
    assert [each["source"] for each in by_source] == ["chat", "docs"]
    for each in by_source:
        mine, single = (
            value(clear, f"{QUALITY}, {each['source']}", system, "quality").value
            for system in (OURS, "best single arm")
        )
        assert each["difference"] == pytest.approx(mine - single)
        assert 0 < each["interval"][0] < each["difference"] < each["interval"][1]


def test_names_of_cases_and_peers_are_those_of_the_contract(clear):
    assert {(each.case, each.ours_over) for each in clear.ratios} == {
        (case, other) for case in ("routed quality", "p50 latency") for other in ("best single arm", "always rag")
    }


def test_every_row_has_its_interval_and_every_source_its_own_rows(clear):
    intervals = {(each["case"], each["system"], each["metric"]): each for each in clear.extra["intervals of 95 %"]}
    for row in clear.rows:
        each = intervals[row.case, row.system, row.metric]
        assert each["low"] <= row.p20 <= row.p80 <= each["high"]
    assert {row.case for row in clear.rows} >= {f"{QUALITY}, docs", f"{QUALITY}, chat", "alone"}


def test_route_that_cannot_be_learned_is_said_to_be_none():
    found = replay(made(400, decided_by_nothing), num_resamples=20)
    assert found.extra[f"verdict, {QUALITY}"].startswith("Not learned")
    assert ratio(found, QUALITY, "best single arm").value == pytest.approx(1.0, abs=0.1)


def test_too_few_questions_give_the_arms_alone_and_say_why():
    found = replay(made(40, decided_by_first), num_resamples=20)
    assert "40 questions are too few" in found.extra["not routed"]
    assert {row.case for row in found.rows} == {"alone"}
    assert not found.ratios


def test_decisions_that_are_timed_are_those_of_a_learned_router():
    draw = np.random.default_rng(0)
    router = made_router(draw)
    decided = router.decide(made_requests(draw, bench_router.REPOSITORY / "docs")[:4]).decisions
    for each in decided:
        assert each.router.startswith("router")
        assert each.signals is not None
        unknown = {name for name, found in each.signals.items() if found is None}
        # An adapter without labels has no centroids.
        assert unknown <= {"adapter.centroid_cosine", "adapter.centroid_margin"} | {
            "adapter.centroid_cosine.tone",
            "adapter.centroid_margin.tone",
        }


def test_no_two_questions_that_are_timed_are_alike_and_every_run_has_the_same():
    first, again = (made_requests(np.random.default_rng(0), bench_router.REPOSITORY / "docs") for _ in range(2))
    assert len({each.text for each in first}) == len(first) > 128
    assert [(each.text, each.evidence) for each in first] == [(each.text, each.evidence) for each in again]


def test_overhead_is_measured_in_every_batch_size():
    found = measure_overhead(num_calls=3)
    assert tuple(each.batch for each in found) == BATCHES
    assert all(len(each.ms) == 3 and min(each.ms) > 0 for each in found)


def test_report_says_what_is_missing_and_how_to_make_it(tmp_path):
    report = bench_router.measure(quick=True, outcomes=tmp_path / "router-outcomes.jsonl.gz", num_calls=2)
    (said,) = report.content()["missing"].values()
    assert "no router-outcomes.jsonl.gz" in said
    assert "switchyard router collect" in said
    assert {row.case for row in report.rows} == {"overhead, batch 1", "overhead, batch 32"}
    assert not report.ratios


def test_report_of_outcomes_can_be_written(tmp_path):
    write_outcomes(made(320, decided_by_first), tmp_path / "outcomes.jsonl.gz", with_texts=False)
    report = bench_router.measure(quick=True, outcomes=tmp_path / "outcomes.jsonl.gz", num_calls=2)
    report.write_json(tmp_path / "router.json")
    assert not report.content()["missing"]
    assert len(report.ratios) == 4
