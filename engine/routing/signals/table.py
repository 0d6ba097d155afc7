"""Signals of many questions as one array with named columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SignalTable:
    """`values` [N, F] float64: a row per question, a column per name; NaN is what could not be known.

    Raises: ValueError when shapes disagree, a name occurs twice, or a value is infinite.
    """

    names: tuple[str, ...]
    values: Floats

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(f"values are {self.values.shape}, names are {len(self.names)}; values must be [N, F]")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"signals {', '.join(twice)} occur more than once; each name is one column")
        if np.isinf(self.values).any():
            column = int(np.flatnonzero(np.isinf(self.values).any(axis=0))[0])
            raise ValueError(f"signal {self.names[column]} is infinite; what cannot be known is NaN")

    def __len__(self) -> int:
        return len(self.values)

    def column(self, name: str) -> Floats:
        """[N] values of one signal. Raises: KeyError naming those there are."""
        if name not in self.names:
            raise KeyError(f"no signal is named {name!r}; there are: {', '.join(self.names)}")
        return self.values[:, self.names.index(name)]

    def select(self, names: Sequence[str]) -> SignalTable:
        """Those columns in that order; a name that is not here is a column of NaN: it was not measured."""
        chosen = np.full((len(self), len(names)), np.nan)
        place_of = {name: place for place, name in enumerate(self.names)}
        found = [(place, place_of[name]) for place, name in enumerate(names) if name in place_of]
        if found:
            into, places = zip(*found, strict=True)
            chosen[:, into] = self.values[:, places]
        return SignalTable(tuple(names), chosen)

    def rows(self) -> list[dict[str, float | None]]:
        """Each question's signals by name, as JSON holds them: None for NaN."""
        cells = self.values.astype(object)
        cells[np.isnan(self.values)] = None
        return [dict(zip(self.names, row, strict=True)) for row in cells.tolist()]


def joined(*tables: SignalTable) -> SignalTable:
    """The columns of all tables side by side. Raises: ValueError when they are not of the same questions."""
    if len({len(table) for table in tables}) != 1:
        raise ValueError(f"tables have {[len(table) for table in tables]} rows; they must be of the same questions")
    return SignalTable(
        tuple(name for table in tables for name in table.names), np.hstack([table.values for table in tables])
    )


def table_of(rows: Sequence[Mapping[str, float | None]]) -> SignalTable:
    """What `SignalTable.rows` gave; names in the order in which they first occur, NaN where a row lacks one."""
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = np.full((len(rows), len(names)), np.nan)
    for place, row in enumerate(rows):
        for column, name in enumerate(names):
            value = row.get(name)
            if value is not None:
                values[place, column] = value
    return SignalTable(names, values)
