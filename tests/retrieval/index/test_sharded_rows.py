"""Rows in several shards against the same rows in one array."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.gpu_rows import GpuRows
from engine.retrieval.index.sharded_rows import ShardedRows

DIM = 8
NUM_SLOTS = 6
backends = pytest.mark.parametrize(
    "new_rows",
    [CpuRows, partial(CpuRows, is_halved=False), partial(GpuRows, device="cpu", dtype=torch.float32)],
    ids=["halves", "faiss", "torch"],
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def whole_vectors(rng: np.random.Generator, num: int) -> np.ndarray:
    """Of whole numbers, so that ties occur and no order of summation changes a score."""
    return rng.integers(-2, 3, (num, DIM)).astype(np.float32)


@backends
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 300), max_size=150)), max_size=8),
    st.integers(1, 60),
    st.none() | st.lists(st.booleans(), min_size=NUM_SLOTS, max_size=NUM_SLOTS),
    st.integers(0, 6),
)
def test_shards_find_what_one_array_finds_to_the_bit(new_rows, pool, num_shards, steps, k, allowed, num_queries):
    whole = new_rows(DIM)
    sharded = ShardedRows(DIM, [new_rows(DIM) for _ in range(num_shards)], pool)
    rng = np.random.default_rng(len(steps))
    held: set[int] = set()
    for is_append, chosen in steps:
        keys = sorted(chosen - held if is_append else chosen & held)
        if is_append:
            vectors = whole_vectors(rng, len(keys))
            slots = rng.integers(0, NUM_SLOTS, len(keys)).astype(np.int32)
            for rows in (whole, sharded):
                rows.append(np.array(keys, np.int64), vectors, slots)
            held |= set(keys)
        else:
            for rows in (whole, sharded):
                rows.remove(keys)
            held -= set(keys)
    queries = whole_vectors(rng, num_queries)
    mask = None if allowed is None else np.array(allowed)
    expected_keys, expected_scores = whole.search(queries, k, mask)
    keys, scores = sharded.search(queries, k, mask)
    assert len(sharded) == len(whole)
    assert keys.dtype == expected_keys.dtype and scores.dtype == expected_scores.dtype
    assert keys.tolist() == expected_keys.tolist()
    assert scores.tolist() == expected_scores.tolist()


def test_keys_in_sequence_fill_the_shards_evenly(pool):
    rows = ShardedRows(DIM, [CpuRows(DIM) for _ in range(3)], pool)
    rows.append(np.arange(300), np.ones((300, DIM), np.float32))
    assert rows.sizes() == [100, 100, 100]


@pytest.mark.parametrize("keys", [[7, 8, 1], [7, 7, 8]])
def test_known_or_repeated_keys_change_no_shard(pool, keys):
    rows = ShardedRows(DIM, [CpuRows(DIM) for _ in range(2)], pool)
    rows.append(np.array([0, 1]), np.ones((2, DIM), np.float32))
    with pytest.raises(ValueError, match="keys"):
        rows.append(np.array(keys), np.ones((3, DIM), np.float32))
    assert rows.sizes() == [1, 1]


def test_removing_an_unknown_key_changes_no_shard(pool):
    rows = ShardedRows(DIM, [CpuRows(DIM) for _ in range(2)], pool)
    rows.append(np.array([0, 1]), np.ones((2, DIM), np.float32))
    with pytest.raises(KeyError):
        rows.remove([0, 9])
    assert rows.sizes() == [1, 1]


def test_queries_of_another_size_and_k_below_one_are_refused_though_there_are_no_rows(pool):
    rows = ShardedRows(DIM, [CpuRows(DIM) for _ in range(2)], pool)
    with pytest.raises(InvalidRequest, match=rf"expected \[n, {DIM}\] float32"):
        rows.search(np.zeros((1, DIM + 1), np.float32), 1)
    with pytest.raises(InvalidRequest, match="k=0 is too small"):
        rows.search(np.zeros((1, DIM), np.float32), 0)
