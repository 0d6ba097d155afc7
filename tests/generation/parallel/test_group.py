"""Ranks sum, join and speak; one that is gone is noticed. Threads stand for the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine.errors import RankLost
from engine.generation.parallel.group import FRAME, RankGroup, Ranks


def together(groups: list[RankGroup], work: Callable[[RankGroup], Any]) -> list[Any]:
    """What each rank's `work` returns."""
    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(work, groups))


def meet(folder: Path, size: int, **limits: float) -> list[RankGroup]:
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: RankGroup(folder, rank, size, meet_s=30, **limits), range(size)))


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[RankGroup]]:
    groups = meet(tmp_path, 3)
    yield groups
    for group in groups:
        group.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensor_parallel_ranks_sum_to_the_same_bits(three: list[RankGroup], dtype: torch.dtype):
    parts = torch.randn(3, 7, 33, generator=torch.Generator().manual_seed(1)).to(dtype)
    sums = together(three, lambda group: group.sum(parts[group.rank].clone()))
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])
    exact = parts.double().sum(0)
    # Two additions, each rounded.
    assert ((sums[0].double() - exact).abs() <= 2 * torch.finfo(dtype).eps * parts.double().abs().sum(0)).all()


@pytest.mark.parametrize("width", [3, 7, 8, 9])
def test_tensor_parallel_ranks_join_columns_that_do_not_divide(three: list[RankGroup], width: int):
    whole = torch.arange(2.0 * width).view(2, width)
    most = -(-width // 3)
    joined = together(
        three, lambda group: group.join_columns(whole[:, group.rank * most : (group.rank + 1) * most], width)
    )
    assert torch.equal(joined[0], whole)


@pytest.mark.parametrize("length", [1, FRAME - 2, FRAME - 1, FRAME, 5 * FRAME])
def test_tensor_parallel_message_of_any_length_arrives(three: list[RankGroup], length: int):
    message = torch.arange(length, dtype=torch.int32)

    def speak(group: RankGroup) -> torch.Tensor:
        if group.rank == 0:
            group.send(message)
            return message
        return group.receive()

    assert all(torch.equal(heard, message) for heard in together(three, speak))


def test_tensor_parallel_tensor_goes_to_one_rank(three: list[RankGroup]):
    def speak(group: RankGroup) -> list[float]:
        if group.rank == 0:
            for other in (1, 2):
                group.send_to(other, torch.full((4,), float(other)))
            return []
        heard = torch.empty(4)
        group.receive_into(heard)
        return heard.tolist()

    assert together(three, speak) == [[], [1.0] * 4, [2.0] * 4]


def test_tensor_parallel_ranks_agree_on_the_least(three: list[RankGroup]):
    assert together(three, lambda group: group.least([5 - group.rank, -group.rank])) == [[3, -2]] * 3


def test_tensor_parallel_of_one_process_sums_and_joins_nothing():
    alone, x = Ranks(), torch.ones(2, 3)
    assert alone.sum(x) is x and alone.join_columns(x, 3) is x and alone.least([4]) == [4]


def test_tensor_parallel_rank_that_left_is_noticed_at_once_by_waiting_and_by_speaking(tmp_path: Path):
    first, second = meet(tmp_path, 2)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(second.receive)
        first.close()
        with pytest.raises(RankLost, match=r"generator\.tensor_parallel died"):
            waiting.result(timeout=20)
    with pytest.raises(RankLost, match="have parted"):
        first.send(torch.zeros(1, dtype=torch.int32))
    with pytest.raises(RankLost):
        second.sum(torch.zeros(1))
    second.close()


def test_tensor_parallel_rank_that_says_nothing_is_lost_after_the_limit(tmp_path: Path):
    first, second = meet(tmp_path, 2, answer_s=0.2)
    with pytest.raises(RankLost, match=r"did not answer within 0\.2 s"):
        first.wait_for_all()
    first.close()
    second.close()


def test_tensor_parallel_rank_whose_peers_never_come_gives_up(tmp_path: Path):
    with pytest.raises(RankLost, match="did not answer"):
        RankGroup(tmp_path, 0, 2, meet_s=0.5)


def test_tensor_parallel_ranks_are_joined_over_loopback_alone(three: list[RankGroup]):
    joined = [each for each in psutil.Process().net_connections("inet") if each.status != psutil.CONN_NONE]
    assert joined and {each.laddr.ip for each in joined} == {"127.0.0.1"}
