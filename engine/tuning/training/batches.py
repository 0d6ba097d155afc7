"""Which examples go into which step: batches of like lengths by token budget, in an order of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.tuning.training.examples import EncodedExample

# Batches' worth of examples that are sorted by length together: enough for like lengths, few enough for a mixed epoch.
WINDOW_BATCHES = 16
# What a forward pass costs besides its tokens, in tokens.
PASS_TOKENS = 256


def plan_epoch(lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """The batches of one epoch, as indices into `lengths`; each example is in exactly one.

    The examples are shuffled, cut into windows, sorted by length within each, and cut into batches of about equal
    token counts near `batch_tokens`, so that no leftover of a few examples gets the weight of a whole step. The
    batches are then shuffled. The plan depends on the arguments only.

    Raises: ValueError when there is no example or `batch_tokens` is not positive.
    """
    if not lengths or batch_tokens < 1:
        raise ValueError(f"a plan needs examples and a positive budget, got {len(lengths)} and {batch_tokens} tokens")
    sizes = np.asarray(lengths, dtype=np.int64)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(sizes))
    num_batches = max(1, round(int(sizes.sum()) / batch_tokens))
    num_windows = -(-num_batches // WINDOW_BATCHES)
    batches: list[tuple[int, ...]] = []
    for window in _cut(order, sizes, num_windows):
        # A stable sort: examples of one length keep their shuffled order.
        by_length = window[np.argsort(sizes[window], kind="stable")]
        share = max(1, round(int(sizes[window].sum()) / batch_tokens))
        batches += [tuple(int(index) for index in batch) for batch in _cut(by_length, sizes, share)]
    return [batches[index] for index in random.permutation(len(batches))]


def split_forwards(batch: Sequence[int], lengths: Sequence[int], forward_tokens: int) -> list[tuple[int, ...]]:
    """Cut one batch into forward passes of at most `forward_tokens` tokens; a longer example goes alone."""
    forwards: list[list[int]] = []
    room = 0
    for index in batch:
        if not forwards or lengths[index] > room:
            forwards.append([])
            room = forward_tokens
        forwards[-1].append(index)
        room -= lengths[index]
    return [tuple(forward) for forward in forwards]


def shared_forwards(examples: Sequence[EncodedExample], forward_tokens: int) -> list[tuple[int, ...]]:
    """Forward passes over all `examples`, those that begin alike together; each computes at most `forward_tokens`.

    What a pass's examples begin with is computed once (see `pack`), so many completions of one prompt cost little more
    than the prompt. An example starts another pass where joining would undo more sharing than a pass costs.
    """
    order = sorted(range(len(examples)), key=lambda index: examples[index].tokens)
    forwards: list[list[int]] = []
    shared = total = 0
    for index in order:
        example = examples[index]
        size, most = len(example.tokens) - 1, example.num_prompt - 1
        if forwards:
            count = len(forwards[-1])
            joined = _num_common(examples[forwards[-1][-1]].tokens, example.tokens, min(shared, most))
            # Tokens computed twice for joining, less those that a pass of its own would compute again.
            lost = (count - 1) * (shared - joined) - joined
            if lost <= PASS_TOKENS and total + size - count * joined <= forward_tokens:
                forwards[-1].append(index)
                shared, total = joined, total + size
                continue
        forwards.append([index])
        shared, total = most, size
    return [tuple(forward) for forward in forwards]


def _num_common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    return next((place for place in range(most) if one[place] != other[place]), most)


def _cut(order: np.ndarray, sizes: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut `order` into at most `parts` runs of about equal token counts, none of them empty."""
    ends = np.cumsum(sizes[order])
    middles = ends - sizes[order] / 2
    part = np.minimum((middles * parts / ends[-1]).astype(np.int64), parts - 1)
    return [run for run in np.split(order, np.flatnonzero(np.diff(part)) + 1) if len(run)]
