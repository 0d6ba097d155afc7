"""Signals of a question's embedding: what it is near to.

Near to what an adapter was trained on: then the adapter most likely knows. Near to questions whose arms were measured:
then those outcomes are the best guess (kNN matches most learned routers, arXiv:2505.12601). Products of float32 rows;
questions embedded in one batch or another may differ in the sixth digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.routing.signals.table import Floats, SignalTable
from kernels.near_rows import near_rows, pack_near_rows

Vectors = NDArray[np.float32]
# A single training input may be odd; several near ones are a subject.
NUM_NEAR = 5
NUM_PAST = 10
# Float16 rows are of unit length up to their rounding.
_LENGTH_ERROR = 0.01
_PER_ADAPTER = ("max_cosine", "mean_cosine", "centroid_cosine", "centroid_margin")


class TrainingNeighbours:
    """What an adapter was trained on, ready to be compared with."""

    def __init__(self, embeddings: NDArray[np.floating], labels: Sequence[int] | None = None) -> None:
        """
        Args:
            embeddings: [N, E] unit rows, N at least 1; float16 as adapters carry them, or wider.
            labels: [N] the label of each row; its centroids are the means of its labels' rows.
        Raises: ValueError naming what is wrong with them.
        """
        rows = _unit_rows(embeddings, "training inputs")
        self._rows = pack_near_rows(rows)
        self._centroids = None if labels is None else pack_near_rows(_centroids(rows, labels))

    @property
    def dim(self) -> int:
        """Size E of an embedding."""
        return int(self._rows.rows.shape[1])

    def measure(self, queries: Vectors) -> Floats:
        """[Q, 4]: highest cosine, mean of the NUM_NEAR highest; cosine of the nearest centroid, and its lead."""
        _check_dim(queries, self.dim)
        queries = queries.astype(np.float32, copy=False)
        found = np.full((len(queries), len(_PER_ADAPTER)), np.nan)
        near = near_rows(queries, self._rows, NUM_NEAR)
        found[:, 0] = near[:, 0]
        found[:, 1] = near.mean(axis=1)
        if self._centroids is not None:
            best = near_rows(queries, self._centroids, 2)
            found[:, 2] = best[:, 0]
            if best.shape[1] > 1:
                found[:, 3] = best[:, 0] - best[:, 1]
        return found


@dataclass(frozen=True, slots=True)
class PastOutcomes:
    """Questions whose arms were measured.

    `embeddings` [N, E] float32 unit rows; `quality` [N, A] of each arm in [0, 1], NaN where it was not measured;
    `groups` [N] name rows that are alike, so that training can leave a question's own group out.
    """

    embeddings: Vectors
    arms: tuple[str, ...]
    quality: Floats
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        num = len(_unit_rows(self.embeddings, "past questions"))
        if self.quality.shape != (num, len(self.arms)) or len(self.groups) != num:
            raise ValueError(
                f"{num} past questions have quality {self.quality.shape} and {len(self.groups)} groups; "
                f"they must be [{num}, {len(self.arms)}] and {num}"
            )


def adapter_signals(queries: Vectors, adapters: Mapping[str, TrainingNeighbours]) -> SignalTable:
    """How near each question is to what adapters were trained on; `queries` [Q, E] unit rows.

    `adapter.max_cosine` and so on are of the nearest adapter, `adapter.max_cosine.NAME` of that one. Without adapters
    the former are NaN. `adapter.lead` is the highest cosine less that of the next adapter; NaN with a single one.
    """
    names = sorted(adapters)
    measured = np.full((len(names), len(queries), len(_PER_ADAPTER)), np.nan)
    for place, name in enumerate(names):
        measured[place] = adapters[name].measure(queries)
    nearest = np.full((len(queries), len(_PER_ADAPTER)), np.nan)
    lead = np.full((len(queries), 1), np.nan)
    if names:
        order = np.argsort(-measured[:, :, 0], axis=0, kind="stable")  # [adapters, Q]
        rows = np.arange(len(queries))
        nearest = measured[order[0], rows]
        if len(names) > 1:
            lead[:, 0] = nearest[:, 0] - measured[order[1], rows, 0]
    return SignalTable(
        (
            *(f"adapter.{each}" for each in _PER_ADAPTER),
            "adapter.lead",
            *(f"adapter.{each}.{name}" for name in names for each in _PER_ADAPTER),
        ),
        np.hstack([nearest, lead, *measured]),
    )


def past_signals(queries: Vectors, past: PastOutcomes, own_groups: Sequence[str] | None = None) -> SignalTable:
    """What the NUM_PAST nearest measured questions say; `queries` [Q, E] unit rows.

    `past.max_cosine` and `past.mean_cosine` say how much they can say; `past.quality.ARM` is their mean quality, NaN
    where none of them was measured on that arm. With `own_groups` [Q], rows of a question's own group are left out:
    a question that is itself among the past ones would see its answer.
    """
    names = ("past.max_cosine", "past.mean_cosine", *(f"past.quality.{arm}" for arm in past.arms))
    if own_groups is not None and len(own_groups) != len(queries):
        raise ValueError(f"{len(queries)} questions have {len(own_groups)} groups; give one each")
    _check_dim(queries, past.embeddings.shape[1])
    cosines = queries @ past.embeddings.T  # [Q, N]
    if own_groups is not None:
        number = {group: place for place, group in enumerate(dict.fromkeys([*past.groups, *own_groups]))}
        theirs = np.array([number[group] for group in past.groups])
        cosines[np.array([number[group] for group in own_groups])[:, None] == theirs] = -np.inf
    values = np.full((len(queries), len(names)), np.nan)
    for row, mine in enumerate(cosines):
        near = _nearest(mine, NUM_PAST)
        if len(near):
            values[row, :2] = mine[near[0]], mine[near].mean(dtype=np.float64)
            values[row, 2:] = _known_mean(past.quality[near])
    return SignalTable(names, values)


def _nearest(cosines: Vectors, num: int) -> NDArray[np.intp]:
    """Places of the `num` highest of [N] cosines, descending, -inf left out; ties go to the earlier row."""
    least = np.partition(cosines, len(cosines) - num)[-num] if len(cosines) > num else -np.inf
    near = np.flatnonzero((cosines >= least) & (cosines > -np.inf))
    return near[np.argsort(-cosines[near], kind="stable")[:num]]


def _known_mean(quality: Floats) -> Floats:
    """[A] mean of the rows of [K, A] that are known; NaN where none is."""
    is_known = ~np.isnan(quality)
    counts = is_known.sum(axis=0)
    sums = np.where(is_known, quality, 0.0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _centroids(rows: Vectors, labels: Sequence[int]) -> Vectors:
    """[L, E] unit mean of each label's rows, by ascending label."""
    if len(labels) != len(rows):
        raise ValueError(f"{len(rows)} training inputs have {len(labels)} labels; give one each")
    numbers, places = np.unique(np.asarray(labels), return_inverse=True)
    sums = np.zeros((len(numbers), rows.shape[1]), dtype=np.float32)
    np.add.at(sums, places, rows)
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _unit_rows(embeddings: NDArray[np.floating], what: str) -> Vectors:
    """`embeddings` as float32 after checks; the rows that a product may read."""
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"{what} are {embeddings.shape}; they must be [N, E] with a row at least")
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_ERROR))
    if len(wrong):
        raise ValueError(f"{what}: row {wrong[0]} has length {lengths[wrong[0]]:.3f}; rows must be of unit length")
    return rows


def _check_dim(queries: Vectors, dim: int) -> None:
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"questions are {queries.shape}, what they are compared with has {dim} columns")
