"""Values of the engine as clients see them."""

from __future__ import annotations

from collections.abc import Iterable

from engine.api.schemas_chat import ChoiceLogprobs, PassageInfo, TokenLogprobInfo, TopLogprob
from engine.values import Passage, TokenLogprob


def choice_logprobs(logprobs: Iterable[TokenLogprob]) -> ChoiceLogprobs | None:
    """Log-probabilities as clients see them; None where there are none."""
    content = [
        TokenLogprobInfo(
            token=each.text,
            bytes=list(each.data),
            logprob=each.logprob,
            top_logprobs=[TopLogprob(token=top.text, bytes=list(top.data), logprob=top.logprob) for top in each.top],
        )
        for each in logprobs
    ]
    return ChoiceLogprobs(content=content) if content else None


def passage_info(passage: Passage) -> PassageInfo:
    """A passage as clients see it."""
    return PassageInfo(
        chunk=passage.chunk,
        document=passage.document,
        title=passage.title,
        start=passage.start,
        end=passage.end,
        score=round(passage.score, 4),
        text=passage.text,
    )
