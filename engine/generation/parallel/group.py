"""How the ranks of one model reach each other: sums between layers, and messages from the first to the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore

from engine.errors import RankLost

# A rank that does not answer within this is lost. Far above a step, far below what a client waits.
ANSWER_S = 60.0
# Processes that have started find each other within this.
MEET_S = 120.0
# To read the weights, which takes some ranks longer than others.
LOAD_S = 600.0
# Numbers in the part of a message that every one has; longer ones have a second part.
FRAME = 1024

_log = logging.getLogger(__name__)


class Ranks:
    """This process alone: nothing to sum, nothing to join."""

    rank = 0
    size = 1

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, the same bits on each; it may overwrite x."""
        return x

    def join_columns(self, x: Tensor, width: int) -> Tensor:
        """`x` [R, ceil(width / size) or fewer] of all ranks side by side, [R, width], on the first; any on others."""
        return x

    def least(self, values: Sequence[int]) -> list[int]:
        """The least of all ranks' values, place by place."""
        return list(values)

    def wait_for_all(self, timeout_s: float | None = None) -> None:
        """Return when every rank is here; `timeout_s` is how long one may take, by default as for any answer."""

    def close(self) -> None:
        """Leave the others, who notice; calling it again does nothing."""


class RankGroup(Ranks):
    """Several processes of one machine. Collectives: all ranks call the same ones in the same order, one thread each.

    Numbers of the host, messages included, go over gloo, bound to loopback; on GPUs, sums between layers go over NCCL.
    Sums are of the activations' dtype. Each element is summed once and copied, so all ranks go on with the same bits.
    Every method but `close` raises RankLost when another rank died, closed or says nothing for `answer_s`.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        size: int,
        *,
        device: str = "cpu",
        meet_s: float = MEET_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        """Meet the others in `folder`, which nobody else may write to and no other group ever uses.

        Raises: RankLost when they do not come within `meet_s`.
        """
        self.rank = rank
        self.size = size
        self._answer_s = answer_s
        self._data: Any = None
        self._control: Any = None
        with _lost_after(meet_s):
            store = FileStore(str(folder / "ranks"), size)
            # The classes behind torch.distributed's module-wide groups: those know no timeout of one call, and one
            # process could not have two of them.
            options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
            options._timeout = timedelta(seconds=meet_s)
            self._control = dist.ProcessGroupGloo(PrefixStore("control", store), rank, size, options)
            self._control._set_default_timeout(timedelta(seconds=answer_s))
            self._data = self._control
            if device.startswith("cuda"):
                fast: Any = dist.ProcessGroupNCCL.Options()
                fast._timeout = timedelta(seconds=answer_s)
                self._data = dist.ProcessGroupNCCL(PrefixStore("data", store), rank, size, fast)

    def sum(self, x: Tensor) -> Tensor:
        with self._reaching():
            self._data.allreduce([x]).wait()
        return x

    def join_columns(self, x: Tensor, width: int) -> Tensor:
        most = -(-width // self.size)
        if x.shape[1] < most:
            x = torch.nn.functional.pad(x, (0, most - x.shape[1]))
        parts = [[torch.empty_like(x) for _ in range(self.size)]] if self.rank == 0 else []
        with self._reaching():
            self._data.gather(parts, [x.contiguous()], dist.GatherOptions()).wait()
        return torch.cat(parts[0], 1)[:, :width].contiguous() if parts else x

    def least(self, values: Sequence[int]) -> list[int]:
        numbers = torch.tensor(values, dtype=torch.int64)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN  # type: ignore[assignment]
        options.timeout = timedelta(seconds=LOAD_S)
        with self._reaching(LOAD_S):
            self._control.allreduce([numbers], options).wait()
        least: list[int] = numbers.tolist()
        return least

    def wait_for_all(self, timeout_s: float | None = None) -> None:
        limit_s = self._answer_s if timeout_s is None else timeout_s
        options = dist.AllreduceOptions()
        options.timeout = timedelta(seconds=limit_s)
        with self._reaching(limit_s):
            self._control.allreduce([torch.zeros(1, dtype=torch.int32)], options).wait()

    def send(self, message: Tensor) -> None:
        """From the first rank to all others: `message` [N] int32."""
        frame = torch.zeros(FRAME, dtype=torch.int32)
        frame[0] = len(message)
        first = message[: FRAME - 1]
        frame[1 : 1 + len(first)] = first
        self._broadcast(frame)
        if len(message) > len(first):
            self._broadcast(message[FRAME - 1 :].contiguous())

    def receive(self) -> Tensor:
        """What the first rank sends. Waits without computing."""
        frame = torch.empty(FRAME, dtype=torch.int32)
        self._broadcast(frame)
        length = int(frame[0])
        if length < FRAME:
            return frame[1 : 1 + length]
        rest = torch.empty(length - (FRAME - 1), dtype=torch.int32)
        self._broadcast(rest)
        return torch.cat((frame[1:], rest))

    def send_to(self, rank: int, content: Tensor) -> None:
        """Give one rank a tensor of the host."""
        with self._reaching():
            self._control.send([content], rank, 0).wait(timedelta(seconds=self._answer_s))

    def receive_into(self, content: Tensor) -> None:
        """Take the tensor that the first rank gives."""
        with self._reaching():
            self._control.recv([content], 0, 0).wait(timedelta(seconds=self._answer_s))

    def close(self) -> None:
        if self._data is not self._control:
            with suppress(RuntimeError):
                self._data.abort()  # what still waits on the device for ranks that are gone
        # Their destructors close the connections.
        self._data = self._control = None

    def _broadcast(self, content: Tensor) -> None:
        with self._reaching():
            self._control.broadcast([content], dist.BroadcastOptions()).wait()

    @contextmanager
    def _reaching(self, timeout_s: float | None = None) -> Iterator[None]:
        if self._control is None:
            raise RankLost("the processes of generator.tensor_parallel have parted")
        with _lost_after(self._answer_s if timeout_s is None else timeout_s):
            yield


@contextmanager
def _lost_after(timeout_s: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        _log.warning("ranks lost each other: %s", " ".join(str(error).split()))
        raise RankLost(
            f"a process of generator.tensor_parallel died, or did not answer within {timeout_s:g} s"
        ) from None
