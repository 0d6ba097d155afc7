"""An encoder whose vectors are no numbers, or too few of them, stores nothing and finds no other document."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from stub_encoder import DIM, StubEncoder

from engine.errors import InvalidRequest
from engine.retrieval.encoding.protocol import Vectors
from engine.values import DocumentWrite, Query


class BreakingEncoder(StubEncoder):
    """As the stub until `breaks` is set."""

    breaks: Callable[[Vectors], Vectors] | None = None

    def encode(self, texts, *, is_query=False):
        vectors = super().encode(texts, is_query=is_query)
        return vectors if self.breaks is None else self.breaks(vectors)


def with_first(value: float) -> Callable[[Vectors], Vectors]:
    def change(vectors: Vectors) -> Vectors:
        changed = vectors.copy()
        changed[0, 0] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (with_first(np.nan), "NaN"),
        (with_first(np.inf), "infinity"),
        (with_first(-np.inf), "infinity"),
        (with_first(1e30), "1e\\+15"),
        (lambda vectors: vectors[:, :-1], f"expected \\[n, {DIM}\\]"),
        (lambda vectors: vectors.astype(np.float64), "float64"),
    ],
    ids=["NaN", "infinity", "minus infinity", "too large", "wrong dimension", "wrong type"],
)
def test_broken_vectors_are_refused_in_writes_and_searches_and_harm_nothing(open_retriever, breaks, message):
    encoder = BreakingEncoder()
    retriever = open_retriever(encoder)
    retriever.write("docs", [DocumentWrite("good", b"The zebra sleeps.")])

    encoder.breaks = breaks
    with pytest.raises(InvalidRequest, match=message):
        retriever.write("docs", [DocumentWrite("bad", b"The lion sleeps."), DocumentWrite("good", b"Changed.")])
    with pytest.raises(InvalidRequest, match=message):
        retriever.evidence([Query("zebra", "docs", 5)])

    encoder.breaks = None
    (found,) = retriever.evidence([Query("zebra", "docs", 5)])
    assert [(one.document, one.text) for one in found.passages] == [("good", "The zebra sleeps.")]
    assert found.version == 1
    (written,) = retriever.write("docs", [DocumentWrite("bad", b"The lion sleeps.")])
    assert (written.status, written.version) == ("created", 2)
