"""What the knowledge base finds for the questions, whoever reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.evaluation.asking import Server
from engine.evaluation.questions import Question
from engine.metrics.text import plain_answer

# nDCG@10 needs so many documents; of each several passages may be found.
DEPTH = 10
_NUM_PASSAGES = 50
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: ids of documents, best first, and whether an answer stands in the best 10 passages."""

    documents: tuple[str, ...]
    has_answer: bool


async def search_all(server: Server, questions: Sequence[Question], collection: str) -> dict[str, Found]:
    """The findings for questions that name documents, by their ids."""
    asked = [each for each in questions if each.documents]
    found: dict[str, Found] = {}
    for first in range(0, len(asked), _AT_ONCE):
        part = asked[first : first + _AT_ONCE]
        body = {"queries": [each.question for each in part], "collection": collection, "k": _NUM_PASSAGES}
        answer = await server.call("POST", "/v1/search", json=body)
        for question, hits in zip(part, answer["results"], strict=True):
            documents = tuple(dict.fromkeys(hit["document"] for hit in hits))[:DEPTH]
            found[question.id] = Found(documents, holds_answer(question, [hit["text"] for hit in hits[:DEPTH]]))
    return found


def holds_answer(question: Question, texts: Sequence[str]) -> bool:
    """Whether one of the right answers stands in one of the texts, as SQuAD compares texts."""
    plain = [f" {plain_answer(text)} " for text in texts]
    answers = [plain_answer(answer) for answer in question.answers]
    return any(f" {answer} " in text for answer in answers if answer for text in plain)
