"""Lengths in tokens, and how the rows spread over the labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.tuning.data.rows import ChatRow, CompletionRow, LabelRow, QuestionRow, Row

CountTokens = Callable[[Sequence[str]], Sequence[int]]
_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the texts of a set: their sum, median, 95th percentile and maximum."""

    total: int
    p50: int
    p95: int
    most: int


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Lengths in the generator's tokens, chat template not counted.

    `num_too_long` rows, of which `too_long_lines` are the first, have more than `max_tokens` with their targets.
    """

    inputs: Lengths
    targets: Lengths
    max_tokens: int | None
    num_too_long: int
    too_long_lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelBalance:
    """Rows of each label, most frequent first; `distinct` counts a near-duplicate cluster as one row.

    `effective_labels` is the exponential of the entropy of the labels' shares: the number of equally frequent labels
    that would be as hard to guess; 77 for 77 equal ones, 1 where one label is all.
    """

    counts: dict[str, int]
    distinct: dict[str, int]
    rarest: str
    rarest_share: float
    most_frequent: str
    most_frequent_share: float
    effective_labels: float


def token_counts(rows: Sequence[Row], count_tokens: CountTokens, max_tokens: int | None, max_lines: int) -> TokenCounts:
    """Args:
    count_tokens: the generator's tokenizer: [N] texts to [N] numbers of tokens.
    max_tokens: what a row may have for training; None does not look.
    """
    inputs = _count([_whole_input(row) for row in rows], count_tokens)
    targets = _count([row.target for row in rows], count_tokens)
    too_long = [
        row.line
        for row, num_input, num_target in zip(rows, inputs, targets, strict=True)
        if max_tokens is not None and num_input + num_target > max_tokens
    ]
    return TokenCounts(_lengths(inputs), _lengths(targets), max_tokens, len(too_long), tuple(too_long[:max_lines]))


def label_balance(rows: Sequence[Row], clusters: Sequence[int]) -> LabelBalance | None:
    """None where rows bear no labels. `clusters` names the near-duplicate cluster of each row."""
    labelled = [(row.label, cluster) for row, cluster in zip(rows, clusters, strict=True) if isinstance(row, LabelRow)]
    counts = Counter(label for label, _ in labelled)
    if not counts:
        return None
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    num_rows = sum(counts.values())
    shares = [count / num_rows for _, count in ranked]
    distinct = Counter(label for label, _ in set(labelled))
    return LabelBalance(
        counts=dict(ranked),
        distinct={label: distinct[label] for label, _ in ranked},
        rarest=ranked[-1][0],
        rarest_share=shares[-1],
        most_frequent=ranked[0][0],
        most_frequent_share=shares[0],
        effective_labels=math.exp(-sum(share * math.log(share) for share in shares)),
    )


def _whole_input(row: Row) -> str:
    """Everything that the model reads before the target."""
    match row:
        case LabelRow():
            return row.text
        case CompletionRow():
            return row.prompt
        case ChatRow():
            return "\n".join(message.content for message in row.messages[:-1])
        case QuestionRow():
            return row.question if row.context is None else f"{row.context}\n{row.question}"


def _count(texts: Sequence[str], count_tokens: CountTokens) -> list[int]:
    # In parts, so that a tokenizer's results for a whole file are never in memory at once.
    return [int(num) for begin in range(0, len(texts), _BATCH) for num in count_tokens(texts[begin : begin + _BATCH])]


def _lengths(counts: Sequence[int]) -> Lengths:
    p50, p95 = (int(value) for value in np.percentile(counts, (50, 95), method="inverted_cdf"))
    return Lengths(sum(counts), p50, p95, max(counts))
