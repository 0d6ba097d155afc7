"""Texts of passages in memory, so that searches go on while the database is away."""

from __future__ import annotations

import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import astuple, dataclass

_ENTRY_BYTES = 120  # what Python needs for one beside its text


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A chunk with its text; `key` is its number in the vector rows."""

    key: int
    chunk: str
    document: str
    title: str | None
    heading: str
    text: str
    start: int
    end: int


class PassageMemory:
    """The passages used last, compressed, up to `max_bytes`. A key names the same passage for ever. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def has_room(self) -> bool:
        """Whether more may come without another one going."""
        return self._num_bytes < self._max_bytes

    def put(self, passages: Iterable[StoredPassage]) -> None:
        """Keep passages; those not used for longest go where there is no room."""
        packed = [(passage.key, zlib.compress(json.dumps(astuple(passage)).encode(), 1)) for passage in passages]
        with self._lock:
            for key, content in packed:
                self._drop(key)
                self._held[key] = content
                self._num_bytes += len(content) + _ENTRY_BYTES
            while self._held and self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._held)))

    def get(self, keys: Iterable[int]) -> dict[int, StoredPassage]:
        """Those of `keys` that are held."""
        found = {}
        with self._lock:
            for key in keys:
                if key in self._held:
                    self._held.move_to_end(key)
                    found[key] = self._held[key]
        return {key: StoredPassage(*json.loads(zlib.decompress(content))) for key, content in found.items()}

    def remove(self, keys: Iterable[int]) -> None:
        """Forget passages that are gone."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def _drop(self, key: int) -> None:
        content = self._held.pop(key, None)
        if content is not None:
            self._num_bytes -= len(content) + _ENTRY_BYTES
