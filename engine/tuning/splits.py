"""Rows for training and rows for choosing the best adapter, with nothing of one group on both sides.

A group is what rows have in common that a model could know them by: the near-duplicate cluster, the `group` that the
file names, and for questions the document or context. The guard's clusters come from `Alike(rows).clusters`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from engine.tuning.data.rows import LabelRow, QuestionRow, Row
from engine.tuning.guard.groups import Groups

# A tenth, or 50 rows where a fifth allows them: below 50 a share of right answers is known to 14 points at best.
VALIDATION_SHARE, MAX_VALIDATION_SHARE = 0.1, 0.2
MIN_VALIDATION = 50
# At 2,000 it is known to 2 points, and every evaluation during training costs time.
MAX_VALIDATION = 2_000
# A label needs this many groups for one of them to be held out.
MIN_GROUPS_TO_HOLD_OUT = 3


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of rows, ascending; together they are all rows. `validation` is empty where no group can be spared.

    `groups` names the group of each row by the position of its first row.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    groups: tuple[int, ...]

    @property
    def num_groups(self) -> int:
        """How many groups the rows are in."""
        return len(set(self.groups))


def split_rows(rows: Sequence[Row], clusters: Sequence[int] | None, *, seed: int, share: float | None = None) -> Split:
    """Hold out whole groups, of each label the same share; the same rows and seed give the same split anywhere.

    Args:
        clusters: near-duplicate cluster of each row; None makes every row a group of its own, whatever it shares with
            others, so that what is held out may repeat what is trained on.
        share: of the rows for validation, from 0 to 0.5; None takes 0.1, more in a small file and less in a large one.
    Raises: ValueError for a share out of range.
    """
    if share is not None and not 0 <= share <= 0.5:
        raise ValueError(f"share {share} is not allowed; validation takes from 0 to 0.5 of the rows")
    share = validation_share(len(rows)) if share is None else share
    groups = list(range(len(rows))) if clusters is None else row_groups(rows, clusters)
    members: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    strata: dict[str, list[int]] = defaultdict(list)
    for group, places in members.items():
        strata[_label(rows, places)].append(group)
    validation = [
        place
        for stratum in sorted(strata)
        for group in _held_out(strata[stratum], members, rows, share, seed)
        for place in members[group]
    ]
    held_out = set(validation)
    train = tuple(place for place in range(len(rows)) if place not in held_out)
    return Split(train, tuple(sorted(held_out)), tuple(groups))


def validation_share(num_rows: int) -> float:
    """The share of a file's rows that validation takes."""
    wanted = max(VALIDATION_SHARE * num_rows, min(MIN_VALIDATION, MAX_VALIDATION_SHARE * num_rows))
    return min(wanted, MAX_VALIDATION) / max(1, num_rows)


def row_groups(rows: Sequence[Row], clusters: Sequence[int]) -> list[int]:
    """The group of each row: rows that share a cluster, a named group, a document or a context, or that others join."""
    groups = Groups(len(rows))
    first: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows):
        groups.join(clusters[place], place)
        for key in _keys(row):
            groups.join(first.setdefault(key, place), place)
    return groups.roots()


def _keys(row: Row) -> list[tuple[str, str]]:
    keys = [("group", row.group)]
    if isinstance(row, QuestionRow):
        keys += [("document", row.document), ("context", row.context)]
    return [(name, value) for name, value in keys if value is not None]


def _label(rows: Sequence[Row], places: Sequence[int]) -> str:
    """The most frequent label of a group, the first by name of equally frequent ones; empty for other tasks."""
    labels = Counter(row.label for place in places if isinstance(row := rows[place], LabelRow))
    return min(labels, key=lambda label: (-labels[label], label), default="")


def _held_out(
    stratum: Sequence[int], members: dict[int, list[int]], rows: Sequence[Row], share: float, seed: int
) -> list[int]:
    """Groups of one label for validation: drawn by the seed until its share of the rows is reached, never exceeded by
    a group that is larger than what is missing. At least one where there are MIN_GROUPS_TO_HOLD_OUT."""
    num_rows = sum(len(members[group]) for group in stratum)
    if not share or len(stratum) < 2:
        return []
    drawn = sorted(stratum, key=lambda group: _draw(rows[group], seed))
    wanted = max(round(share * num_rows), 1 if len(stratum) >= MIN_GROUPS_TO_HOLD_OUT else 0)
    held_out: list[int] = []
    for group in drawn:
        if len(members[group]) <= wanted:
            held_out.append(group)
            wanted -= len(members[group])
    # Two large documents: one of them is still better than no validation, unless it is most of the rows.
    smallest = min(drawn, key=lambda group: len(members[group]))
    if wanted and not held_out and 2 * len(members[smallest]) <= num_rows:
        held_out.append(smallest)
    return held_out


def _draw(row: Row, seed: int) -> bytes:
    """The place in the lottery: of the content, so that it moves with no other row and on no other machine."""
    return sha256(f"{seed}\n{row.content()}".encode()).digest()
