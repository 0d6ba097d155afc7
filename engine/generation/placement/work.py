"""What a request asks of a replica, as far as its text tells: tokens, and hashes of its prompt's beginnings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.values import GenerationRequest, Message, Passage, ScoreRequest

# English text has about four characters a token; only the proportions between requests matter here.
_TOKEN_CHARS = 4
# A long text is cut into pieces, so that two which differ at their ends share the rest. From the 16th piece on they
# double in size every 16, so a prompt of 100,000 tokens has about 80.
_PIECE_CHARS = 1024
_PIECES_OF_ONE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Work:
    """One request. `pieces` are beginnings of its prompt, each with a hash and its length in tokens, shortest first;
    hashes of different tenants or adapters differ. `tokens` are estimated.
    """

    id: str
    tokens: int
    pieces: tuple[tuple[int, int], ...] = ()
    adapter: str | None = None


def work_of(request_id: str, request: GenerationRequest | ScoreRequest) -> Work:
    """The work of a request. Of many prompts to score the first one's beginning counts: they mostly share it."""
    origin = hash((request.cache_salt, request.adapter))
    if isinstance(request, GenerationRequest):
        pieces = _pieces(origin, request.messages, request.passages, request.prompt_token_ids)
        return Work(request_id, pieces[-1][1] if pieces else 1, pieces, request.adapter)
    each = [_pieces(origin, item.messages, (), item.prompt_token_ids) for item in request.items]
    tokens = sum(pieces[-1][1] for pieces in each if pieces)
    return Work(request_id, max(tokens, 1), each[0] if each else (), request.adapter)


def _pieces(
    origin: int, messages: tuple[Message, ...], passages: tuple[Passage, ...], token_ids: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    size = _PIECE_CHARS
    position, beginning = 0, origin
    parts: Iterator[str | tuple[int, ...]] = iter((token_ids,)) if token_ids else _texts(messages, passages)
    for part in parts:
        unit = 1 if isinstance(part, tuple) else _TOKEN_CHARS
        start = 0
        while start < len(part):
            end = start + max(size // (_TOKEN_CHARS if unit == 1 else 1), 1)
            piece = part[start:end]
            beginning = hash((beginning, piece))
            position += -(-len(piece) // unit)
            found.append((beginning, position))
            start = end
            size = _PIECE_CHARS << (len(found) // _PIECES_OF_ONE_SIZE)
    return tuple(found)


def _texts(messages: tuple[Message, ...], passages: tuple[Passage, ...]) -> Iterator[str]:
    """The prompt's parts in their order: passages stand in front of the last question."""
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages))
    for index, message in enumerate(messages):
        if index == last:
            for passage in passages:
                yield passage.text
        yield message.content
