"""Several replicas are shown as one component."""

from __future__ import annotations

from engine.serving.statuses import joined, with_lag


def test_counts_of_the_replicas_that_answer_are_added_up_and_the_slowest_step_counts():
    one = {"ready": True, "model": "tiny", "running": 1, "output_tokens": 10, "step_ms": 2.0}
    two = {"ready": True, "model": "tiny", "running": 3, "output_tokens": 5, "step_ms": 1.0}
    ill = {"ready": False, "why": "no step finished for 130 s"}
    assert joined([ill, one, two], 3) == {
        **{"ready": True, "model": "tiny", "running": 4, "output_tokens": 15, "step_ms": 2.0},
        **{"replicas": 2, "num_replicas": 3},
        "each": [{"running": 1, "output_tokens": 10}, {"running": 3, "output_tokens": 5}],
    }


def test_no_replica_that_is_ready_is_not_ready_and_says_why():
    ill = {"ready": False, "why": "it died"}
    assert joined([ill], 2) == {"ready": False, "why": "it died", "replicas": 0, "num_replicas": 2}
    assert joined([], 2)["why"] == "no replica answers"


def test_replicas_that_hold_the_same_collection_do_not_count_it_twice():
    one = {"ready": True, "collections": 2, "chunks": 30, "versions": 7, "follows": True}
    behind = {"ready": True, "collections": 1, "chunks": 20, "versions": 4, "follows": True}
    shown = joined([behind, one], 2)
    assert shown.pop("each") == [{"versions": 4}, {"versions": 7}]
    assert shown == {**one, "replicas": 2, "num_replicas": 2}


def test_each_follower_shows_how_far_it_is_behind_the_one_that_writes():
    one = {"ready": True, "replica": "one", "versions": 7, "read_s_ago": 0.1, "searches": 3}
    two = {"ready": True, "replica": "two", "versions": 4, "read_s_ago": 2.5, "searches": 2}
    followers = joined([one, two], 2)
    assert "replica" not in followers and followers["read_s_ago"] == 2.5
    shown = with_lag(followers, {"ready": True, "versions": 6, "encoder": {}})
    assert shown["writer"] == {"ready": True, "versions": 6}
    assert [(own["replica"], own["versions_behind"]) for own in shown["each"]] == [("one", 0), ("two", 2)]


def test_lag_is_not_known_where_the_one_that_writes_does_not_answer():
    follower = {"ready": True, "versions": 7, "read_s_ago": 0.1}
    shown = with_lag(joined([follower], 1), {"ready": False, "why": "it died"})
    assert shown["ready"] and shown["writer"] == {"ready": False, "why": "it died"}
    assert shown["each"] == [{**{"versions": 7, "read_s_ago": 0.1}, "versions_behind": None}]
    assert with_lag(joined([], 2), {"ready": True, "versions": 1})["ready"] is False
