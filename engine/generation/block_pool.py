"""The free KV blocks."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Blocks 0 to num_blocks - 1. Freshly freed ones are used first: they are the likeliest to be in a cache."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take blocks; the caller has made sure that there are enough."""
        assert count <= len(self._free), f"{count} blocks asked for, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._is_free[block] = False
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Raises: AssertionError for one that is free already."""
        for block in blocks:
            assert not self._is_free[block], f"block {block} is freed twice"
            self._is_free[block] = True
            self._free.append(block)

    def free_blocks(self) -> set[int]:
        """For checks."""
        return set(self._free)
