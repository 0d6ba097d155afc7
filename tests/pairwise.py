"""Covers of a product of factors: every pair of values of any two factors occurs in some row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """A small list of rows that covers all pairs, the same on every run: greedily the row with most new pairs."""
    names = list(factors)
    rows = [dict(zip(names, values, strict=True)) for values in product(*factors.values())]
    missing = {pair for row in rows for pair in _pairs(row)}
    cover: list[dict[str, Any]] = []
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        cover.append(best)
        missing -= _pairs(best)
    return cover


def _pairs(row: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    return set(combinations(row.items(), 2))
