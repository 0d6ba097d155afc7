"""How work on fixed tensors is recorded, so that one call repeats it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Capture(Protocol):
    """Records work that reads and writes the same tensors every time, and waits for nothing."""

    @property
    def num_bytes(self) -> int:
        """Device memory that all recordings hold."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do `work` at least once; what is returned does it again. Raises: whatever it raises, or the device does."""


class CudaCapture:
    """CUDA graphs, which share their memory: a recording's own tensors are gone when another one is repeated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        new_stream: Any = torch.cuda.Stream
        self._stream = new_stream(device)
        self.num_bytes = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See Capture."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()  # the first run of a kernel compiles it, which cannot be recorded
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # as recording does first: what is counted is the recording's own
        before = torch.cuda.memory_reserved(self._device)
        new_graph: Any = torch.cuda.CUDAGraph
        graph = new_graph()
        # Other threads of the process may allocate meanwhile: an encoder, or an adapter that is read.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        self.num_bytes += max(torch.cuda.memory_reserved(self._device) - before, 0)
        repeat: Callable[[], None] = graph.replay
        return repeat
