from __future__ import annotations

from collections.abc import AsyncIterator

from engine.values import GenerationRequest, Message, TokenDelta
from loadtest.followup_rewrites import rewrites

FIRST = (Message("user", "How do volumes work?"),)
FOLLOW_UP = (*FIRST, Message("assistant", "As disks."), Message("user", "And secrets?"))
OTHER = (*FIRST, Message("assistant", "As disks."), Message("user", "Is it safe?"))


class Speaking:
    """Says `text` to every request, and keeps the requests."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.requests: list[GenerationRequest] = []

    async def submit(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        self.requests.append(request)
        yield TokenDelta(self.text, 1, finish_reason="stop")


async def test_follow_ups_are_put_to_the_generator_and_first_questions_are_not() -> None:
    engine = Speaking("How do secrets work?")
    found, num_rewritten = await rewrites([FIRST, FOLLOW_UP, OTHER], engine)
    assert found == {FIRST: "How do volumes work?", FOLLOW_UP: engine.text, OTHER: engine.text}
    assert num_rewritten == 2
    assert len({request.id for request in engine.requests}) == 2, "requests in progress at once need ids of their own"


async def test_a_generator_that_says_nothing_leaves_the_rules() -> None:
    found, num_rewritten = await rewrites([FOLLOW_UP], Speaking(" "))
    assert (found[FOLLOW_UP], num_rewritten) == ("And secrets? volumes work", 0)
