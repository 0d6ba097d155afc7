"""A guess of what replicas have computed."""

from __future__ import annotations

from engine.generation.placement.sketch import PrefixSketch

PIECES = ((1, 100), (2, 200), (3, 300))
SIZES = {"a": 1000, "b": 1000}


def test_each_replica_has_the_longest_beginning_that_was_sent_there():
    sketch = PrefixSketch()
    sketch.add("a", PIECES[:2], 200, 0.0)
    sketch.add("b", PIECES[:1], 100, 0.0)
    assert sketch.cached(PIECES, SIZES, 1.0) == {"a": 200, "b": 100}
    assert sketch.cached(((9, 100),), SIZES, 1.0) == {}


def test_a_piece_is_lost_once_the_replica_computed_as_many_tokens_as_it_keeps():
    sketch = PrefixSketch()
    sketch.add("a", PIECES, 300, 0.0)
    sketch.add("a", ((7, 900),), 900, 1.0)
    assert sketch.cached(PIECES, SIZES, 2.0) == {"a": 300}
    sketch.add("a", ((8, 200),), 200, 1.0)
    assert sketch.cached(PIECES, SIZES, 2.0) == {}


def test_pieces_grow_old():
    sketch = PrefixSketch(max_age_s=60)
    sketch.add("a", PIECES, 300, 0.0)
    assert sketch.cached(PIECES, SIZES, 59.0) and not sketch.cached(PIECES, SIZES, 61.0)


def test_the_longest_unused_pieces_give_way():
    sketch = PrefixSketch(max_pieces=3)
    sketch.add("a", PIECES, 300, 0.0)
    sketch.add("a", PIECES[:2], 0, 1.0)
    sketch.add("a", ((4, 50),), 50, 2.0)
    assert len(sketch) == 3
    assert sketch.cached(PIECES, SIZES, 3.0) == {"a": 200}


def test_a_replica_that_is_gone_has_nothing():
    sketch = PrefixSketch()
    sketch.add("a", PIECES, 300, 0.0)
    sketch.add("b", PIECES[:1], 100, 0.0)
    sketch.forget("a")
    assert sketch.cached(PIECES, SIZES, 1.0) == {"b": 100} and len(sketch) == 1
