"""What answers were made of, for as long as they can be rated."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from engine.values import Decision, RouteRequest


@dataclass(frozen=True, slots=True)
class Answered:
    """How one answer came about. `keys` are the digests of what was served, None where the router did not know them.

    `at` is a Unix time in seconds; `route` and `versions` are those of the response.
    """

    tenant: str
    at: float
    model: str
    request: RouteRequest
    decision: Decision
    route: str
    keys: dict[str, Any] | None
    versions: dict[str, Any]


class AnswerMemory:
    """The last answers of one gateway. Used from one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._answers: OrderedDict[str, Answered] = OrderedDict()

    def keep(self, response: str, answered: Answered) -> None:
        """Remember an answer, and forget the oldest where there are too many."""
        self._answers[response] = answered
        while len(self._answers) > self.most:
            self._answers.popitem(last=False)

    def recall(self, response: str, tenant: str) -> Answered | None:
        """None too where the answer was another tenant's: its ids are nobody else's business."""
        answered = self._answers.get(response)
        return answered if answered is not None and answered.tenant == tenant else None
