"""Beginnings that prompts share, found by their text."""

from __future__ import annotations

from dataclasses import replace

from engine.generation.placement.work import work_of
from engine.values import GenerationRequest, Message, Passage, ScoreItem, ScoreRequest

SYSTEM = Message("system", "Answer briefly. " * 100)


def request(*messages: Message, **fields) -> GenerationRequest:
    return GenerationRequest("r", messages, **fields)


def shared_tokens(one: GenerationRequest, other: GenerationRequest) -> int:
    theirs = dict(work_of("b", other).pieces)
    return max((tokens for piece, tokens in work_of("a", one).pieces if piece in theirs), default=0)


def passage(text: str) -> Passage:
    return Passage("c", "d", "", "", text, 0, len(text), 1.0)


def test_next_turn_shares_the_whole_turn_before():
    first = request(SYSTEM, Message("user", "What is a KV block?"))
    second = request(*first.messages, Message("assistant", "A run of slots."), Message("user", "How long?"))
    assert shared_tokens(first, second) == work_of("a", first).tokens
    assert work_of("b", second).tokens > work_of("a", first).tokens > len(SYSTEM.content) // 4


def test_questions_about_the_same_passages_share_them_and_in_another_order_do_not():
    passages = (passage("alpha " * 300), passage("beta " * 300))
    one = request(SYSTEM, Message("user", "Why?"), passages=passages)
    other = request(SYSTEM, Message("user", "How?"), passages=passages)
    turned = request(SYSTEM, Message("user", "How?"), passages=passages[::-1])
    assert shared_tokens(one, other) == work_of("a", one).tokens - 1
    assert shared_tokens(one, turned) == shared_tokens(one, request(SYSTEM)) == len(SYSTEM.content) // 4


def test_long_texts_that_differ_at_their_ends_share_their_beginnings():
    text = " ".join(map(str, range(4000)))
    one, other = request(Message("user", text + "?")), request(Message("user", text + "!"))
    assert 0.8 < shared_tokens(one, other) / work_of("a", one).tokens < 1
    ids = tuple(range(5000))
    one, other = request(prompt_token_ids=(*ids, 1)), request(prompt_token_ids=(*ids, 2))
    assert work_of("a", one).tokens == 5001 and shared_tokens(one, other) > 4000


def test_pieces_stay_few_however_long_the_prompt():
    assert len(work_of("a", request(Message("user", "x" * 400_000))).pieces) < 100


def test_tenants_and_adapters_share_nothing():
    mine = request(SYSTEM, Message("user", "hello"))
    assert shared_tokens(mine, replace(mine, cache_salt="other")) == 0
    assert shared_tokens(mine, replace(mine, adapter="tone")) == 0


def test_scoring_counts_every_prompt_and_shares_the_first_ones_beginning():
    message = Message("user", "x" * 400)
    asked = ScoreRequest("s", (ScoreItem(("a",), (message,)), ScoreItem(("b",), (message,))))
    work = work_of("s", asked)
    assert work.tokens == 200 and work.pieces == work_of("r", request(message)).pieces
    assert work_of("s", ScoreRequest("s", ())).tokens == 1
