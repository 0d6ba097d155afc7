"""The noise of a draw: of each token of a row by a hash of the request's seed, the position and the token.

The token with the largest logit / temperature + noise is a draw from their softmax (Gumbel, 1954), and over a set of
tokens one from the softmax of that set. Nothing else goes into the noise, so neither batch mates nor drafts, nor the
order in which a device looks at tokens, change a draw. Hashes are integers, and the same bits everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK_64, _MASK_32 = 2**64 - 1, 2**32 - 1
# SplitMix64 (Steele et al., OOPSLA 2014), and multipliers with little bias found by Wellons' hash prospector.
_GOLDEN, _WIDE_1, _WIDE_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_NARROW_1, _NARROW_2 = 0x7FEB352D, 0x846CA68B


def row_key(seed: int, position: int) -> int:
    """64 bits for a row; `seed` and `position` are taken modulo 2**64."""
    return _splitmix((seed ^ _splitmix(position)) & _MASK_64)


def token_hash(key: int, token_id: int) -> int:
    """32 bits for a token of the row with that key."""
    low, high = key & _MASK_32, key >> 32
    return _mix(_mix((token_id + low) & _MASK_32) ^ high)


def gumbel(hashed: int) -> float:
    """Gumbel noise of 32 bits, from about -3.1 to 22.9."""
    return -math.log(-math.log1p(-(hashed + 0.5) / 2**32))


def row_keys_torch(seed: Tensor, position: Tensor) -> Tensor:
    """`row_key` of each row, int64 with the same bits."""
    return _splitmix_torch(seed ^ _splitmix_torch(position))


def gumbel_torch(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Float64 noise of tokens, each with its row's key; int64 tensors that broadcast."""
    low, high = keys & _MASK_32, (keys >> 32) & _MASK_32
    hashed = _mix_torch(_mix_torch((token_ids + low) & _MASK_32) ^ high)
    return -(-torch.log1p(-(hashed.double() + 0.5) / 2**32)).log()


def _splitmix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK_64
    x = ((x ^ (x >> 30)) * _WIDE_1) & _MASK_64
    x = ((x ^ (x >> 27)) * _WIDE_2) & _MASK_64
    return x ^ (x >> 31)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 16)) * _NARROW_1) & _MASK_32
    x = ((x ^ (x >> 15)) * _NARROW_2) & _MASK_32
    return x ^ (x >> 16)


def _splitmix_torch(x: Tensor) -> Tensor:
    # torch's integers wrap around as unsigned ones do, but shift their sign in.
    x = x + _signed(_GOLDEN)
    x = (x ^ ((x >> 30) & (_MASK_64 >> 30))) * _signed(_WIDE_1)
    x = (x ^ ((x >> 27) & (_MASK_64 >> 27))) * _signed(_WIDE_2)
    return x ^ ((x >> 31) & (_MASK_64 >> 31))


def _mix_torch(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * _NARROW_1) & _MASK_32
    x = ((x ^ (x >> 15)) * _NARROW_2) & _MASK_32
    return x ^ (x >> 16)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
