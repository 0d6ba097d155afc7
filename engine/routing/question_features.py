"""A question's words as hashed n-grams of fixed width: what a linear head reads besides the embedding.

Three families, each of unit length in every row: words (1 to 3), patterns (1 to 4; words that are not common become one
star, so that "who plays * in *" is the same of any film), and character 3- to 5-grams within words, which survive
typing errors and see names that are no names. Hashes are the same on every machine; a batch is hashed at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from engine.routing.signals.lexical import plain_words

# Words that are looked at of a question: the time is bounded whatever a client sends.
MAX_WORDS = 64
_SIZES = {"words": (1, 2, 3), "patterns": (1, 2, 3, 4), "pieces": (3, 4, 5)}
# Codes of a pattern's marks; CRC-32 of no word is as large.
_START, _END, _STAR, _NUMBER = (2**32 + place for place in range(4))
# An odd factor makes an n-gram's code depend on the order of its parts; the others are those of MurmurHash3's finish.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MIX, _SECOND_MIX, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)

_Codes = NDArray[np.uint64]
_Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HashedRows:
    """N sparse rows: row i has `columns`, ascending, and `values` from `starts[i]` to `starts[i + 1]`."""

    starts: _Places
    columns: _Places
    values: NDArray[np.float64]

    def products(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """[N] products with `weights` [W]."""
        num = len(self.starts) - 1
        rows = np.repeat(np.arange(num), np.diff(self.starts))
        summed = np.bincount(rows, weights=self.values * weights[self.columns], minlength=num)
        return np.asarray(summed, dtype=np.float64)


def hashed_rows(questions: Sequence[str], width: int, common: Collection[str]) -> HashedRows:
    """Features of each question in `width` columns. A value grows with the logarithm of how often its n-gram occurs.

    `common` are the words that patterns keep. A question without words has an empty row.
    """
    words = [plain_words(question)[:MAX_WORDS] for question in questions]
    patterns = [_pattern(each, common) for each in words]
    padded = [f" {word} " for each in words for word in each]
    word_rows = _numbered([len(each) for each in words])
    letters = _numbered([len(word) for word in padded])  # the word that each character is of
    characters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    streams = {
        "words": (_codes([crc32(word.encode("utf-8", "surrogatepass")) for each in words for word in each]), word_rows),
        "patterns": (_codes([code for each in patterns for code in each]), _numbered([len(each) for each in patterns])),
        "pieces": (characters, letters),
    }
    num = len(questions)
    hashes, rows = [], []
    for family, (name, (codes, runs)) in enumerate(streams.items()):
        found, owners = _ngrams(codes, runs, _SIZES[name], seed=family)
        hashes.append(found)
        # Rows of the families stand one below the other, until each has its length.
        rows.append((word_rows[owners] if name == "pieces" else owners) + family * num)
    columns = (_mixed(np.concatenate(hashes)) % np.uint64(width)).astype(np.int64)
    distinct, counts = np.unique(np.concatenate(rows) * width + columns, return_counts=True)
    weights = 1 + np.log(counts)
    lengths = np.sqrt(np.bincount(distinct // width, weights=weights**2, minlength=len(streams) * num))
    values = weights / lengths[distinct // width]
    # Two families may meet in a column: their values add up. Each is sorted, so a stable sort only merges them.
    all_keys = distinct % max(1, num * width)
    order = np.argsort(all_keys, kind="stable")
    ordered = all_keys[order]
    is_first = np.diff(ordered, prepend=-1) != 0
    keys = ordered[is_first]
    summed = np.bincount(np.cumsum(is_first) - 1, weights=values[order], minlength=len(keys))
    starts = np.searchsorted(keys, np.arange(num + 1) * width)
    return HashedRows(starts.astype(np.int64), keys % width, np.asarray(summed, dtype=np.float64))


def _pattern(words: Sequence[str], common: Collection[str]) -> list[int]:
    """Codes of a question's pattern; runs of stars are one, and no words have none."""
    if not words:
        return []
    pattern = [_START]
    for word in words:
        is_number = word.isdigit()
        code = crc32(word.encode("utf-8", "surrogatepass")) if word in common else _NUMBER if is_number else _STAR
        if code != _STAR or pattern[-1] != _STAR:
            pattern.append(code)
    return [*pattern, _END]


def _ngrams(codes: _Codes, runs: _Places, sizes: Sequence[int], seed: int) -> tuple[_Codes, _Places]:
    """Hashes of all n-grams of the `sizes`, ascending by one, that lie within one run, and the run of each.

    An n-gram's is the polynomial of its codes in _FACTOR, begun with a number of its size and family.
    """
    found, owners = [], []
    polynomial, power = codes, _FACTOR
    with np.errstate(over="ignore"):
        for size in range(1, sizes[-1] + 1):
            if size > 1:
                polynomial = polynomial[:-1] * _FACTOR + codes[size - 1 :]
                power = power * _FACTOR
            if size >= sizes[0]:
                is_whole = runs[: len(polynomial)] == runs[size - 1 :]
                found.append((polynomial + np.uint64(seed * 8 + size) * power)[is_whole])
                owners.append(runs[: len(polynomial)][is_whole])
    return np.concatenate(found), np.concatenate(owners)


def _mixed(hashes: _Codes) -> _Codes:
    """Hashes of which every bit depends on every one of `hashes`."""
    hashes = (hashes ^ (hashes >> _SHIFT)) * _FIRST_MIX
    hashes = (hashes ^ (hashes >> _SHIFT)) * _SECOND_MIX
    return np.asarray(hashes ^ (hashes >> _SHIFT))


def _codes(numbers: Sequence[int]) -> _Codes:
    return np.array(numbers, dtype=np.uint64)


def _numbered(lengths: Sequence[int]) -> _Places:
    """0 `lengths[0]` times, 1 `lengths[1]` times, and so on."""
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
