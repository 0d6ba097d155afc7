"""The rows of a run: exceptions joined to the data, samples to look at, and subsets for the curve."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from engine.errors import TrainingDataError
from engine.tuning.data.examples import Examples
from engine.tuning.data.rows import LabelRow, QuestionRow, Row

# Of a sample; the rest of it is drawn from all rows.
MIN_EXCEPTIONS = 20


def join_exceptions(examples: Examples, exceptions: Examples | None) -> tuple[Examples, frozenset[int]]:
    """The data with the rows of the exceptions behind them, and the lines of those.

    Lines of exceptions are counted on from the last line of the data. Rows of the data that are in the exceptions too
    are left out, so that both marking rows by a copy and keeping them apart give the same set.
    Raises: TrainingDataError where the exceptions are of another kind.
    """
    if exceptions is None:
        return examples, frozenset()
    if exceptions.kind != examples.kind:
        raise TrainingDataError(
            f"{exceptions.source}: holds {exceptions.description}, but {examples.source} {examples.description}. "
            "Exceptions are rows of the same kind."
        )
    marked = {_content(row) for row in exceptions.rows}
    rows = tuple(row for row in examples.rows if _content(row) not in marked)
    last = max(row.line for row in examples.rows)
    moved = tuple(replace(row, line=last + row.line) for row in exceptions.rows)
    digest = sha256(f"{examples.digest}\nexceptions\n{exceptions.digest}".encode()).hexdigest()
    return replace(examples, rows=(*rows, *moved), digest=digest), frozenset(row.line for row in moved)


def sample_rows(
    rows: Sequence[Row], most: int | None, *, seed: int, exceptions: frozenset[int] = frozenset()
) -> list[Row]:
    """`most` of the rows in their order, of each label the same share; None takes all.

    With MIN_EXCEPTIONS of the exceptions, where there are so many and the draw has fewer.
    """
    if most is None or len(rows) <= most:
        return list(rows)
    order = stratified_order(rows, seed)
    drawn = set(order[:most])
    marked = [place for place in order if rows[place].line in exceptions]
    missing = [place for place in marked if place not in drawn]
    wanted = min(MIN_EXCEPTIONS, most) - (len(marked) - len(missing))
    drawn |= set(missing[: max(0, wanted)])
    return [rows[place] for place in sorted(drawn)]


def subset_rows(rows: Sequence[Row], size: int, *, seed: int) -> list[Row]:
    """`size` of the rows in their order; the smaller of two subsets is part of the larger one."""
    return [rows[place] for place in sorted(stratified_order(rows, seed)[:size])]


def draw_rows(rows: Sequence[Row], most: int, *, seed: int) -> list[Row]:
    """`most` of the rows in their order, or all: of each label, or of each document, its share to within one row."""
    if len(rows) <= most:
        return list(rows)
    draw = random.Random(seed)
    order = draw.sample(range(len(rows)), len(rows))
    order.sort(key=lambda place: _stratum(rows[place]))
    # Systematic sampling: steps of one length over the rows in the order of their strata.
    start = draw.randrange(len(rows))
    return [rows[place] for place in sorted(order[(step * len(rows) + start) // most] for step in range(most))]


def stratified_order(rows: Sequence[Row], seed: int) -> list[int]:
    """Places of the rows, drawn by the seed, so that any beginning has about the same share of each label."""
    strata: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        strata[row.label if isinstance(row, LabelRow) else ""].append(place)
    draw = random.Random(seed)
    keyed: list[tuple[float, float, int]] = []
    for label in sorted(strata):
        places = strata[label]
        draw.shuffle(places)
        # Member i of n comes at (i + 1/2) / n of the way: labels take turns by their frequency.
        keyed += [((rank + 0.5) / len(places), draw.random(), place) for rank, place in enumerate(places)]
    return [place for _, _, place in sorted(keyed)]


def _stratum(row: Row) -> str:
    if isinstance(row, QuestionRow):
        return row.document or row.context or ""
    return row.label if isinstance(row, LabelRow) else ""


def _content(row: Row) -> str:
    return repr(row.content())
