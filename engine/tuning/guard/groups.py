"""Disjoint groups of rows that grow together."""

from __future__ import annotations


class Groups:
    """Rows 0 to `num_rows` - 1, each alone at first; a group is named by its first row."""

    def __init__(self, num_rows: int) -> None:
        self._parent = list(range(num_rows))

    def root(self, row: int) -> int:
        """The first row of the group that `row` is in."""
        while (parent := self._parent[row]) != row:
            self._parent[row] = row = self._parent[parent]
        return row

    def roots(self) -> list[int]:
        """The group of each row."""
        return [self.root(row) for row in range(len(self._parent))]

    def are_joined(self, one: int, other: int) -> bool:
        """Whether two rows are in one group."""
        return self.root(one) == self.root(other)

    def join(self, one: int, other: int) -> None:
        """Make one group of the groups of two rows."""
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first
