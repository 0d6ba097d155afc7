"""Token ids on their way to the host while the device goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Ids of two steps may be on their way: a step's are read after the next one was launched.
_NUM_PLACES = 2


class Readback:
    """Pinned places that the ids of successive steps are copied to, in turn. One thread uses it."""

    def __init__(self, max_ids: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._places = [torch.empty(max_ids, dtype=torch.int64, pin_memory=is_cuda) for _ in range(_NUM_PLACES)]
        new_event: Any = torch.cuda.Event
        self._events: list[Any] = [new_event() if is_cuda else None for _ in range(_NUM_PLACES)]
        self._turn = 0

    def begin(self, ids: Tensor) -> Callable[[], list[int]]:
        """Copy `ids` [R] int64 as they are once all that was launched is computed; what is returned waits for them.

        They must be read before `begin` is called for the second time after this one.
        """
        place, event = self._places[self._turn][: len(ids)], self._events[self._turn]
        self._turn = (self._turn + 1) % _NUM_PLACES
        place.copy_(ids, non_blocking=True)
        if event is not None:
            event.record()

        def read() -> list[int]:
            if event is not None:
                event.synchronize()
            token_ids: list[int] = place.tolist()
            return token_ids

        return read
