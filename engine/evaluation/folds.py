"""Folds of questions, with nothing of one group in two of them and each source spread over all."""

from __future__ import annotations

from collections import defaultdict
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from engine.errors import TrainingDataError
from engine.evaluation.table import OutcomeTable


def make_folds(table: OutcomeTable, num_folds: int, seed: int) -> NDArray[np.int64]:
    """[N] fold of each question, from 0; the same table and seed give the same folds anywhere.

    Groups are drawn by the seed, the largest of a source first, and go where that source has the fewest questions.
    Raises: TrainingDataError where there are fewer groups than folds.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(table.groups.tolist()):
        members[group].append(place)
    if len(members) < num_folds:
        raise TrainingDataError(
            f"the {len(table):,} questions are in {len(members)} groups; at least {num_folds} are needed, so that what "
            "is learned is tested on others. Name smaller groups, or none."
        )
    strata: dict[str, list[int]] = defaultdict(list)
    for group, places in members.items():
        strata[table.sources[places[0]]].append(group)
    folds = np.zeros(len(table), dtype=np.int64)
    totals = np.zeros(num_folds, dtype=np.int64)
    for source in sorted(strata):
        counts = np.zeros(num_folds, dtype=np.int64)
        drawn = sorted(
            strata[source], key=lambda group: (-len(members[group]), _draw(table.ids[members[group][0]], seed))
        )
        for group in drawn:
            fold = min(range(num_folds), key=lambda each: (counts[each], totals[each], each))
            folds[members[group]] = fold
            counts[fold] += len(members[group])
            totals[fold] += len(members[group])
    return folds


def _draw(identifier: str, seed: int) -> bytes:
    """The place in the lottery: of the id, so that it moves with no other question and on no other machine."""
    return sha256(f"{seed}\n{identifier}".encode()).digest()
