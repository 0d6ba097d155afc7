"""Searches as a server makes them before it decides a route, in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from engine.config import GeneratorSettings, RetrieverSettings, usable_cores
from engine.errors import RequestError
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.service import Retriever
from engine.routing.signals.scores import MAX_RANKS
from engine.values import DocumentWrite, Evidence, Query

# Passages that a prompt gets, and so what the signals look at.
NUM_PASSAGES = int(GeneratorSettings.model_fields["max_passages"].default)
_TEXTS_PER_CALL, _QUERIES_PER_CALL = 256, 64


@contextmanager
def filled(encoder: EncoderLike, collections: Mapping[str, Sequence[DocumentWrite]]) -> Iterator[Retriever]:
    """A retriever with these documents by collection, in a folder that is removed afterwards. Raises: RequestError."""
    settings = RetrieverSettings(threads=usable_cores())
    with tempfile.TemporaryDirectory() as folder, closing(Retriever(Path(folder), encoder, settings)) as retriever:
        for name, items in collections.items():
            for first in range(0, len(items), _TEXTS_PER_CALL):
                for result in retriever.write(name, items[first : first + _TEXTS_PER_CALL]):
                    if result.error is not None:
                        raise result.error
        yield retriever


def searched(retriever: Retriever, questions: Sequence[tuple[str, str]]) -> list[Evidence]:
    """The evidence of each (text, collection): MAX_RANKS similarities, and the passages that a prompt would get.

    A question is embedded once where the collections of one text stand side by side. Raises: RequestError.
    """
    found = []
    for first in range(0, len(questions), _QUERIES_PER_CALL):
        part = questions[first : first + _QUERIES_PER_CALL]
        queries = [Query(text, collection, MAX_RANKS, wants_clues=True) for text, collection in part]
        for answer in retriever.evidence(queries):
            if isinstance(answer, RequestError):
                raise answer
            found.append(replace(answer, passages=answer.passages[:NUM_PASSAGES]))
    return found
