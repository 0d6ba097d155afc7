"""What "no match" looks like in an index: the best scores of questions that have nothing to do with it."""

from __future__ import annotations

from pathlib import Path

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.rows import Rows
from engine.values import ScoreBackground

# The best of a handful of chunks says little about what unrelated questions score.
_MIN_CHUNKS = 20
_MAX_DRIFT = 0.1


def background_questions() -> list[str]:
    """64 short questions on everyday and encyclopaedic subjects."""
    file = Path(__file__).with_name("background_questions.txt")
    return file.read_text(encoding="utf-8").splitlines()


class BackgroundMeter:
    """The score background of one set of vector rows, measured anew when their number has changed by a tenth."""

    def __init__(self) -> None:
        self.background: ScoreBackground | None = None
        self._num_measured = 0

    def refresh(self, rows: Rows, questions: Vectors) -> None:
        """Measure where needed; `questions` [Q, E] are the embedded background questions."""
        if len(rows) < _MIN_CHUNKS:
            self.background = None
            self._num_measured = 0
        elif abs(len(rows) - self._num_measured) > _MAX_DRIFT * self._num_measured:
            _, scores = rows.search(questions, 1)
            self.background = ScoreBackground(float(scores.mean()), float(scores.std()), len(questions))
            self._num_measured = len(rows)
