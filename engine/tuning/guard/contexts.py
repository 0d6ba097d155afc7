"""What questions are about. The same question about two contexts is two examples, and tells nothing about the other."""

from __future__ import annotations

from collections.abc import Sequence

from engine.tuning.data.rows import QuestionRow, Row
from engine.tuning.guard.near import NearIndex
from engine.tuning.guard.text import normalise

# What rows without a context or document share.
NOTHING = -1


class Contexts:
    """The contexts and documents of a file, near-duplicate contexts taken as one."""

    def __init__(self, rows: Sequence[Row]) -> None:
        questions = [row for row in rows if isinstance(row, QuestionRow)]
        texts = list(dict.fromkeys(normalise(row.context) for row in questions if row.context is not None))
        self._index = NearIndex(texts)
        self._clusters = self._index.clusters()
        self._of_text = dict(zip(texts, self._clusters, strict=True))
        documents = dict.fromkeys(row.document for row in questions if row.context is None and row.document is not None)
        self._of_document = {name: len(texts) + place for place, name in enumerate(documents)}

    def of(self, row: Row) -> int | None:
        """The context that a row is about, also for rows of another file; None for one that this file has not."""
        if not isinstance(row, QuestionRow) or (row.context is None and row.document is None):
            return NOTHING
        if row.context is None:
            return self._of_document.get(row.document or "")
        text = normalise(row.context)
        if text in self._of_text:
            return self._of_text[text]
        nearest = self._index.nearest(text)
        return None if nearest is None else self._clusters[nearest[0]]
