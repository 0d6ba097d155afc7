"""How much the rows differ from each other: by their words, and by an encoder where one is given."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engine.tuning.guard.near import shingles
from engine.tuning.guard.text import normalise

# Distinct shares fall with the length of a text, so they are taken over windows of one length.
WINDOW_WORDS = 1_000
MAX_ENCODED = 2_000
# 125,000 pairs, by the beginnings and ends of their texts.
MAX_OVERLAPPED, OVERLAP_CHARS = 500, 200
# Of the embeddings of paraphrases by sentence encoders; cosines of others differ, so this decides nothing alone.
NEAR_COSINE = 0.95

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class DistinctWords:
    """Share of the words (and pairs of adjacent words) that are distinct, averaged over windows of 1,000 words.

    distinct-n of Li et al. (arXiv:1510.03055). Sets of fewer words have one shorter window, and so higher shares.
    """

    distinct_1: float
    distinct_2: float
    num_words: int


@dataclass(frozen=True, slots=True)
class SelfSimilarity:
    """Cosines among the embeddings of `num_texts` inputs, drawn by the seed.

    `mean` is over all pairs, `nearest` over each text's nearest other one, `share_near` the share of texts whose
    nearest one is at 0.95 or more. `vendi` is the effective number of different texts (arXiv:2210.02410): the
    exponential of the entropy of the eigenvalues of the matrix of cosines.
    """

    num_texts: int
    mean: float
    nearest: float
    share_near: float
    vendi: float


def distinct_words(texts: Sequence[str], seed: int) -> DistinctWords | None:
    """Over `texts` in an order drawn by the seed, since files are often sorted; None where there are no words."""
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)
    rows = [normalise(text).split() for text in shuffled]
    words = [word for row in rows for word in row]
    # Pairs do not cross from one text to the next.
    pairs = [pair for row in rows for pair in pairwise(row)]
    if not words:
        return None
    return DistinctWords(_distinct_share(words), _distinct_share(pairs), len(words))


def mean_overlap(texts: Sequence[str], seed: int) -> float | None:
    """Mean Jaccard similarity of the 5-grams of two inputs, over texts drawn by the seed; None for fewer than two.

    Unlike a share of distinct words it does not depend on how many rows there are.
    """
    drawn = random.Random(seed).sample(list(texts), min(MAX_OVERLAPPED, len(texts)))
    if len(drawn) < 2:
        return None
    sets = [shingles(normalise(text), OVERLAP_CHARS) for text in drawn]
    sizes = np.array([len(each) for each in sets], np.float32)
    _, ids, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    is_shared = counts[ids] > 1
    column = np.cumsum(counts > 1) - 1
    has = np.zeros((len(drawn), int(column[-1]) + 1), np.float32)  # [N, shared 5-grams]
    has[np.repeat(np.arange(len(drawn)), [len(each) for each in sets])[is_shared], column[ids[is_shared]]] = 1
    shared = has @ has.T
    similarities = shared / (sizes[:, None] + sizes[None] - shared)
    np.fill_diagonal(similarities, 0)
    return float(similarities.sum(dtype=np.float64)) / (len(drawn) * (len(drawn) - 1))


def self_similarity(texts: Sequence[str], embed: Embed, seed: int) -> SelfSimilarity | None:
    """Args:
        embed: [N] texts to [N, E] float32; need not be normalised.

    Returns: None for fewer than two texts.
    """
    drawn = random.Random(seed).sample(list(texts), min(MAX_ENCODED, len(texts)))
    if len(drawn) < 2:
        return None
    vectors = np.asarray(embed(drawn), np.float32)  # [N, E]
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = vectors @ vectors.T  # [N, N]
    num = len(drawn)
    mean = (float(cosines.sum(dtype=np.float64)) - num) / (num * (num - 1))
    np.fill_diagonal(cosines, -1.0)
    nearest = cosines.max(axis=1)
    # The cosines' nonzero eigenvalues are those of the smaller product.
    small = (vectors.T @ vectors if vectors.shape[1] < num else vectors @ vectors.T).astype(np.float64)
    spectrum = np.linalg.eigvalsh(small) / num
    spectrum = spectrum[spectrum > 1e-12]
    return SelfSimilarity(
        num_texts=num,
        mean=mean,
        nearest=float(nearest.mean()),
        share_near=float((nearest >= NEAR_COSINE).mean()),
        vendi=math.exp(float(-(spectrum * np.log(spectrum)).sum())),
    )


def _distinct_share(items: Sequence[object]) -> float:
    """Mean over whole windows; over what there is where that is less than one."""
    if not items:
        return 0.0
    begins = range(0, max(1, len(items) - WINDOW_WORDS + 1), WINDOW_WORDS)
    shares = [len(set(window)) / len(window) for begin in begins if (window := items[begin : begin + WINDOW_WORDS])]
    return sum(shares) / len(shares)
