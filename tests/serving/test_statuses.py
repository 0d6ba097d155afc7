"""Several replicas are shown as one component."""

from __future__ import annotations

from engine.serving.statuses import joined


def test_counts_of_the_replicas_that_answer_are_added_up_and_the_slowest_step_counts():
    one = {"ready": True, "model": "tiny", "running": 1, "output_tokens": 10, "step_ms": 2.0}
    two = {"ready": True, "model": "tiny", "running": 3, "output_tokens": 5, "step_ms": 1.0}
    ill = {"ready": False, "why": "no step finished for 130 s"}
    assert joined([ill, one, two], 3) == {
        **{"ready": True, "model": "tiny", "running": 4, "output_tokens": 15, "step_ms": 2.0},
        **{"replicas": 2, "num_replicas": 3},
    }


def test_no_replica_that_is_ready_is_not_ready_and_says_why():
    ill = {"ready": False, "why": "it died"}
    assert joined([ill], 2) == {"ready": False, "why": "it died", "replicas": 0, "num_replicas": 2}
    assert joined([], 2)["why"] == "no replica answers"


def test_replicas_that_hold_the_same_collection_do_not_count_it_twice():
    one = {"ready": True, "collections": 2, "chunks": 30, "follows": True}
    behind = {"ready": True, "collections": 1, "chunks": 20, "follows": True}
    assert joined([behind, one], 2) == {**one, "replicas": 2, "num_replicas": 2}
