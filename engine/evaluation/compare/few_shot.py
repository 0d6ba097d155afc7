"""Training examples shown in the prompt: what can be had of them without training.

For each question those of the most similar words are taken (TF-IDF of words and pairs of words, cosine), the most
similar one last, next to the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from engine.errors import ConfigError, TrainingDataError
from engine.evaluation.questions import Question
from engine.tuning.data.examples import Examples
from engine.tuning.guard.text import normalise

DEFAULT_NUM = 4
# One that fills the prompt teaches nothing but itself.
_MAX_CHARS = 2_000


class FewShot:
    """Earlier turns for a question, from a file of training examples."""

    def __init__(self, examples: Examples, num: int = DEFAULT_NUM) -> None:
        """Raises: ConfigError without scikit-learn; TrainingDataError where no example can be shown."""
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError:
            raise ConfigError(
                "arm few-shot needs scikit-learn, which is not installed. Run pip install 'switchyard[tune]'."
            ) from None
        rows = [row for row in examples.rows if row.target and len(row.input_text) + len(row.target) <= _MAX_CHARS]
        if not rows:
            raise TrainingDataError(
                f"{examples.source}: no example is of at most {_MAX_CHARS:,} characters and has an answer; "
                "leave out --few-shot."
            )
        self.digest = examples.digest
        self._num = num
        self._asked = {normalise(row.input_text) for row in examples.rows}
        self._texts = [normalise(row.input_text) for row in rows]
        self._pairs = [(row.input_text, row.target) for row in rows]
        # What stands in all examples alike tells none apart; a text without any word is like no other.
        self._words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
        self._rows = self._words.fit_transform([text or "-empty-" for text in self._texts])

    def turns(self, question: str, num: int | None = None) -> list[dict[str, str]]:
        """Examples as turns of a chat. One with the question's own text is not shown: it would give away the answer."""
        same = normalise(question)
        scores = np.asarray((self._rows @ self._words.transform([same]).T).todense()).ravel()
        best = [int(place) for place in np.argsort(-scores, kind="stable") if self._texts[place] != same]
        shown = reversed(best[: self._num if num is None else num])
        return [
            {"role": role, "content": text}
            for place in shown
            for role, text in zip(("user", "assistant"), self._pairs[place], strict=True)
        ]

    def leaked(self, questions: Iterable[Question]) -> Sequence[Question]:
        """Questions that stand among the examples word for word."""
        return [each for each in questions if normalise(each.question) in self._asked]
