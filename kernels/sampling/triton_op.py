"""Sampling on a GPU in three launches, without a sort and without a word to the host.

1. The best token of each part of a row.
2. The token with the largest sum of scaled logit and noise in each part, as if top_k and top_p were off. Blocks that
   no noise can lift over the best so far get none.
3. One program a row: the winner of all parts. Where top_k or top_p would not have kept it, those that they keep come
   before it in order of probability, and the row draws again among these, until the winner is one of them.

A row is cut into parts until there are programs enough to fill a device, so one row alone fills it too. Sums are taken
in the third launch, in the same order whatever the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling.torch_op import NOISE_RANGE

_MAX_BLOCK = 4096
# Programs of the first two launches that are wanted, about four for each multiprocessor of a large GPU.
_PROGRAMS = 512
# Bits of a float32 that tell logits of a dtype apart, in their order.
_KEY_BITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 19}


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    *,
    max_block: int = _MAX_BLOCK,
) -> Tensor:
    """See `sample`, without its check. `max_block` bounds the tokens that a program looks at together."""
    num_rows, width = logits.shape
    block = min(triton.next_power_of_2(width), max_block)
    num_blocks = triton.cdiv(width, block)
    num_parts = min(num_blocks, triton.cdiv(_PROGRAMS, num_rows))
    part = triton.cdiv(num_blocks, num_parts) * block
    num_parts = triton.cdiv(width, part)
    peaks = torch.empty((2, num_rows, num_parts), device=logits.device)
    ids = torch.empty((2, num_rows, num_parts), dtype=torch.int32, device=logits.device)
    chosen = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    grid = (num_rows, num_parts)
    stride = logits.stride(0)
    all_parts = triton.next_power_of_2(num_blocks)  # whatever the batch, so that nothing is compiled for its size
    _best_of_parts[grid](peaks[0], ids[0], logits, stride, width, part, num_parts, BLOCK=block)
    _draws_of_parts[grid](
        *(peaks[1], ids[1], peaks[0], ids[0], logits, stride, temperature, min_p, seed, position),
        *(width, part, num_parts),
        RANGE=NOISE_RANGE,
        BLOCK=block,
        PARTS=all_parts,
        num_warps=8 if block >= 2048 else 4,
    )
    _settle[(num_rows,)](
        *(chosen, peaks[1], ids[1], peaks[0], ids[0], logits, stride),
        *(temperature, top_k, top_p, min_p, seed, position, width, num_parts),
        RANGE=NOISE_RANGE,
        KEY_BITS=_KEY_BITS[logits.dtype],
        BLOCK=block,
        PARTS=all_parts,
        num_warps=16 if block >= 2048 else 4,
    )
    return chosen


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _splitmix(x):
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _row_key(seed, position, row):
    """The two halves of a row's key, [1] uint32 each."""
    at = row + tl.zeros([1], tl.int64)
    drawn = tl.load(seed + at).to(tl.uint64, bitcast=True)
    place = tl.load(position + at).to(tl.uint64, bitcast=True)
    key = _splitmix(drawn ^ _splitmix(place))
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def _gumbel(token, low, high):
    """Float32 noise. Small numbers keep their digits: of 1 - w itself, log would see few of w's."""
    hashed = _mix(_mix(token.to(tl.uint32) + low) ^ high)
    w = (hashed.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    is_small = w < 0.5
    rest = tl.where(is_small, 1.0 - w, ((hashed ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10)
    # log(1 - w) from the rounded difference, put right by how far that is from w (Kahan).
    gap = tl.where(is_small & (rest < 1.0), 1.0 - rest, 1.0)
    ratio = tl.where(is_small & (rest < 1.0), w / gap, 1.0)
    race = tl.where(rest < 1.0, -tl.log(rest) * ratio, w)
    return -tl.log(race)


@triton.jit
def _peak(peaks, ids, row, num_parts, PARTS: tl.constexpr):
    """Logit and id of a row's best token; the id is negative where it has none."""
    place = tl.arange(0, PARTS)
    is_part = place < num_parts
    peak = tl.load(peaks + row * num_parts + place, is_part, float("-inf"))
    token = tl.load(ids + row * num_parts + place, is_part, 0)
    best = tl.max(peak, 0)
    first = tl.min(tl.where(peak == best, token, 0x7FFFFFFF), 0)
    return best, tl.where((tl.min(token, 0) < 0) | (best == float("-inf")), -1, first)


@triton.jit
def _log_share(min_p, row):
    share = tl.load(min_p + row)
    return tl.where(share > 0, tl.log(tl.where(share > 0, share, 1.0)), float("-inf"))


@triton.jit
def _heat(temperature, row):
    heat = tl.load(temperature + row)
    # By less, differences overflow; the best token alone is drawn either way.
    return tl.where(heat > 0, tl.maximum(heat, 1e-30), 0.0)


@triton.jit
def _winner(logits, start, stop, best, heat, least, low, high, last, last_id, RANGE: tl.constexpr, BLOCK: tl.constexpr):
    """Score and id of the token that wins among [start, stop), of those before token `last_id` of logit `last`."""
    score = tl.full([], float("-inf"), tl.float32)
    chosen = tl.full([], 0x7FFFFFFF, tl.int32)
    for first in range(start, stop, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + token, token < stop, float("-inf")).to(tl.float32)
        scaled = (x - best) / heat
        is_taken = ((x > last) | ((x == last) & (token < last_id))) & (scaled >= least)
        scaled = tl.where(is_taken, scaled, float("-inf"))
        if tl.max(scaled, 0) > tl.maximum(score - RANGE, -RANGE):
            noisy = scaled + _gumbel(token, low, high)
            most = tl.max(noisy, 0)
            if most > score:
                score = most
                chosen = tl.min(tl.where(noisy == most, token, 0x7FFFFFFF), 0)
    return score, chosen


@triton.jit(do_not_specialize=["part", "num_parts"])
def _best_of_parts(peaks, ids, logits, stride, width, part, num_parts, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, width)
    best = tl.full([], float("-inf"), tl.float32)
    chosen = tl.full([], 0x7FFFFFFF, tl.int32)
    is_bad = tl.full([], 0, tl.int32)
    for first in range(start, stop, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + token, token < stop, float("-inf")).to(tl.float32)
        is_bad = tl.maximum(is_bad, tl.max(((x != x) | (x == float("inf"))).to(tl.int32), 0))
        x = tl.where(x == x, x, float("-inf"))
        most = tl.max(x, 0)
        if most > best:
            best = most
            chosen = tl.min(tl.where(x == most, token, 0x7FFFFFFF), 0)
    place = row * num_parts + tl.program_id(1)
    tl.store(peaks + place, best)
    tl.store(ids + place, tl.where(is_bad > 0, -1, chosen))


@triton.jit(do_not_specialize=["part", "num_parts"])
def _draws_of_parts(
    scores,
    score_ids,
    peaks,
    peak_ids,
    logits,
    stride,
    temperature,
    min_p,
    seed,
    position,
    width,
    part,
    num_parts,
    RANGE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    best, best_id = _peak(peaks, peak_ids, row, num_parts, PARTS)
    heat = _heat(temperature, row)
    if (best_id >= 0) & (heat > 0):
        start = tl.program_id(1) * part
        stop = tl.minimum(start + part, width)
        low, high = _row_key(seed, position, row)
        least = _log_share(min_p, row)
        score, chosen = _winner(
            *(logits + row * stride, start, stop, best, heat, least, low, high, float("-inf"), 0, RANGE, BLOCK)
        )
        place = row * num_parts + tl.program_id(1)
        tl.store(scores + place, score)
        tl.store(score_ids + place, chosen)


@triton.jit
def _num_at_least(logits, key, width, KEY_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many tokens have a key of `key` or more."""
    num = tl.zeros([BLOCK], tl.int32)
    for first in range(0, width, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + token, token < width, float("-inf")).to(tl.float32)
        num += ((_key(x, KEY_BITS) >= key) & (token < width)).to(tl.int32)
    return tl.sum(num, 0)


@triton.jit
def _key(x, KEY_BITS: tl.constexpr):
    """Unsigned numbers of the same order; 0 and -0 have one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)
    ordered = tl.where((bits >> 31) > 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return ordered >> (32 - KEY_BITS)


@triton.jit
def _mass_of_best(logits, num, best, heat, width, KEY_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of the weights of the `num` best tokens, the best one's being 1."""
    key = tl.full([], 0, tl.uint32)
    if num < width:
        bit = tl.full([], 1 << (KEY_BITS - 1), tl.uint32)
        for _ in range(KEY_BITS):  # the largest key that so many tokens reach
            if _num_at_least(logits, key | bit, width, KEY_BITS, BLOCK) >= num:
                key = key | bit
            bit = bit >> 1
    weights = tl.zeros([BLOCK], tl.float32)
    above = tl.zeros([BLOCK], tl.int32)
    edge = tl.full([], 0.0, tl.float32)
    for first in range(0, width, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + token, token < width, float("-inf")).to(tl.float32)
        own = _key(x, KEY_BITS)
        weight = tl.exp((x - best) / heat)
        weights += tl.where(own > key, weight, 0.0)
        above += (own > key).to(tl.int32)
        edge = tl.maximum(edge, tl.max(tl.where(own == key, weight, 0.0), 0))
    return tl.sum(weights, 0) + (num - tl.sum(above, 0)).to(tl.float32) * edge


@triton.jit
def _before(logits, last, last_id, best, heat, width, BLOCK: tl.constexpr):
    """Number and weight of the tokens before token `last_id` of logit `last`."""
    weights = tl.zeros([BLOCK], tl.float32)
    num = tl.zeros([BLOCK], tl.int32)
    for first in range(0, width, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = tl.load(logits + token, token < width, float("-inf")).to(tl.float32)
        is_before = (x > last) | ((x == last) & (token < last_id))
        weights += tl.where(is_before, tl.exp((x - best) / heat), 0.0)
        num += is_before.to(tl.int32)
    return tl.sum(num, 0), tl.sum(weights, 0)


@triton.jit(do_not_specialize=["num_parts"])
def _settle(
    chosen,
    scores,
    score_ids,
    peaks,
    peak_ids,
    logits,
    stride,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    position,
    width,
    num_parts,
    RANGE: tl.constexpr,
    KEY_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    best, best_id = _peak(peaks, peak_ids, row, num_parts, PARTS)
    heat = _heat(temperature, row)
    winner = best_id
    if (best_id >= 0) & (heat > 0):
        place = tl.arange(0, PARTS)
        score = tl.load(scores + row * num_parts + place, place < num_parts, float("-inf"))
        token = tl.load(score_ids + row * num_parts + place, place < num_parts, 0x7FFFFFFF)
        winner = tl.min(tl.where(score == tl.max(score, 0), token, 0x7FFFFFFF), 0)
        num = tl.load(top_k + row)
        limit = tl.where((num > 0) & (num < width), num, width).to(tl.int32)
        share = tl.load(top_p + row)
        if (limit < width) | (share < 1):
            low, high = _row_key(seed, position, row)
            least = _log_share(min_p, row)
            reach = tl.full([], float("inf"), tl.float32)
            if share < 1:
                reach = share * _mass_of_best(logits, limit, best, heat, width, KEY_BITS, BLOCK)
            is_left_out = winner != best_id  # the best token always stays
            while is_left_out:
                last = tl.load(logits + winner).to(tl.float32)
                before, mass = _before(logits, last, winner, best, heat, width, BLOCK)
                is_left_out = (before >= limit) | (mass >= reach)
                if is_left_out:
                    _score, winner = _winner(
                        *(logits, 0, width, best, heat, least, low, high, last, winner, RANGE, BLOCK)
                    )
                    is_left_out = winner != best_id
    tl.store(chosen + row, winner.to(tl.int64))
