"""Guesses of what an answer copies: from the right place, no more than they are worth, and never changing an answer."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.generation.drafts import DraftRate, PromptLookup, may_pay, share_drafts
from engine.generation.sampler import Sampler, choose
from engine.generation.scheduler import Scheduler
from engine.generation.sequence import BLOCK_TOKENS, PrefixKey, Sequence
from engine.generation.step import FixedBudget
from engine.values import SamplingParams

FLAT = [1.0] * 100  # further tokens cost nothing


def rate(*outcomes: tuple[int, int]) -> DraftRate:
    made = DraftRate()
    for drafted, accepted in outcomes:
        made.observe(drafted, accepted)
    return made


def test_draft_continues_the_passage_that_holds_the_last_tokens():
    lookup = PromptLookup([[10, 11, 12, 13, 14, 15]], [1, 2, 3])
    lookup.extend([11, 12])
    assert lookup.draft(3) == [13, 14, 15]
    assert lookup.draft(2) == [13, 14]
    assert lookup.draft(0) == []


def test_draft_prefers_the_first_passage_to_later_ones_and_passages_to_the_prompt():
    lookup = PromptLookup([[5, 6, 7, 1], [5, 6, 7, 2]], [5, 6, 7, 3, 9])
    lookup.extend([5, 6, 7])
    assert lookup.draft(1) == [1]


def test_draft_prefers_three_agreeing_tokens_of_the_prompt_to_two_of_a_passage():
    lookup = PromptLookup([[8, 6, 7, 1]], [5, 6, 7, 3, 9])
    lookup.extend([5, 6, 7])
    assert lookup.draft(1) == [3]


def test_draft_follows_the_place_it_copies_from_though_the_words_stand_elsewhere_too():
    lookup = PromptLookup([[1, 2, 3, 4, 5, 2, 3, 9]], [0])
    lookup.extend([1, 2, 3])
    assert lookup.draft(2) == [4, 5]
    lookup.extend([4, 5, 2, 3])
    assert lookup.draft(1) == [9]


def test_answer_that_leaves_the_passage_is_looked_up_anew():
    lookup = PromptLookup([[1, 2, 3, 4], [7, 8, 9]], [0])
    lookup.extend([1, 2])
    assert lookup.draft(1) == [3]
    lookup.extend([7, 8])
    assert lookup.draft(5) == [9]


def test_answer_that_repeats_itself_drafts_from_itself():
    lookup = PromptLookup([], [0])
    lookup.extend([4, 5, 6, 4, 5])
    assert lookup.draft(4) == [6, 4, 5]


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30), st.integers(1, 7))
def test_draft_is_always_what_follows_the_last_two_tokens_somewhere(passage, answer, most):
    lookup = PromptLookup([passage], [0, 1])
    seen = [0, 1]
    for token in answer:
        draft = lookup.draft(most)
        if draft:
            assert len(draft) <= most
            wanted = [*seen[-2:], *draft]
            assert any(text[at : at + len(wanted)] == wanted for text in (passage, seen) for at in range(len(text)))
        lookup.extend([token])
        seen.append(token)


def test_rate_follows_the_outcomes_and_stays_between_zero_and_one():
    assert rate(*[(7, 7)] * 20).acceptance > 0.95
    assert 0 < rate(*[(7, 0)] * 20).acceptance < 0.2
    assert rate(*[(7, 0)] * 20, *[(7, 7)] * 5).acceptance > 0.7


def test_free_tokens_are_all_granted_and_dear_ones_none():
    assert share_drafts([(DraftRate(), 3), (DraftRate(), 2)], FLAT) == [3, 2]
    as_dear_as_steps = [1.0 + n for n in range(10)]
    assert share_drafts([(DraftRate(), 3)], as_dear_as_steps) == [0]


def test_dear_tokens_go_to_the_request_that_copies():
    copying, telling = rate(*[(4, 4)] * 20), rate(*[(4, 0)] * 20)
    half_price = [1.0 + n / 4 for n in range(10)]
    assert share_drafts([(telling, 4), (copying, 4)], half_price) == [0, 4]


def test_request_that_stopped_copying_tries_again_after_a_while_where_few_run():
    idle = rate(*[(4, 0)] * 40, *[(0, 0)] * 20)
    as_dear_as_steps = [1.0 + n for n in range(10)]
    assert share_drafts([(idle, 4)], as_dear_as_steps) == [1]
    assert share_drafts([(idle, 4)] * 8, as_dear_as_steps) == [0] * 8


@pytest.mark.parametrize("token_s", [0.01, 0.1, 0.16, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("num", [1, 4, 5, 16])
def test_guesses_are_spared_exactly_where_none_would_be_granted(num, token_s):
    rates = [rate(*[(4, right)] * 20) for right in (0, 2, 4)] * num
    step_s = [1.0 + token_s * n for n in range(20)]
    granted = share_drafts([(each, 4) for each in rates[:num]], step_s)
    assert may_pay(rates[:num], step_s[:2]) == (num <= 4 or any(granted))


def test_grants_never_exceed_what_the_table_covers():
    assert sum(share_drafts([(DraftRate(), 7)] * 3, FLAT[:6])) == 5
    assert share_drafts([], FLAT) == []


@pytest.mark.parametrize(
    "params", [{"temperature": 1.0}, {"temperature": 0.8, "top_k": 3}, {"repetition_penalty": 1.3}]
)
def test_drafts_change_no_token_of_any_seed(params):
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)) * 2
    for seed in range(50):
        plain = Sampler(SamplingParams(seed=seed, **params), (1, 2))
        one_by_one = [choose(logits[n][None], [plain])[0][0].token_id for n in range(4)]
        for draft in (one_by_one[:3], [*one_by_one[:2], (one_by_one[2] + 1) % 12], [(one_by_one[0] + 1) % 12]):
            sampler = Sampler(SamplingParams(seed=seed, **params), (1, 2))
            (chosen,) = choose(logits[: len(draft) + 1], [sampler], [draft])
            right = next((n for n, token in enumerate(draft) if token != one_by_one[n]), len(draft))
            assert [choice.token_id for choice in chosen] == one_by_one[: right + 1]


def test_sampled_tokens_behind_drafts_keep_the_exact_distribution():
    """Chi-square over 6,000 draws of two tokens, the first of which was drafted (8 cells, 0.1 % critical value)."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [1.0, 0.0, -1.0, 0.5]])
    chance = logits.softmax(-1).double()
    num_draws = 6000
    second: Counter[int] = Counter()
    first: Counter[int] = Counter()
    for seed in range(num_draws):
        (chosen,) = choose(logits, [Sampler(SamplingParams(temperature=1.0, seed=seed), ())], [[2]])
        first[chosen[0].token_id] += 1
        if len(chosen) > 1:
            second[chosen[1].token_id] += 1
    for counts, expected in ((first, chance[0]), (second, chance[1])):
        total = sum(counts.values())
        statistic = sum((counts[token] - total * p) ** 2 / (total * p) for token, p in enumerate(expected.tolist()))
        assert statistic < 16.27  # 3 degrees of freedom
    assert sum(second.values()) == first[2]


def test_log_probabilities_behind_drafts_are_those_of_their_own_rows():
    logits = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
    (chosen,) = choose(logits, [Sampler(SamplingParams(logprobs=1), ())], [[1]])
    expected = logits.log_softmax(-1)
    assert [choice.logprob for choice in chosen] == pytest.approx([expected[0, 1].item(), expected[1, 2].item()])


def sequence(name: str, num_tokens: int, most: int) -> Sequence:
    return Sequence(name, list(range(num_tokens)), num_tokens, most, PrefixKey("m", "", ""), None)


def decoding(scheduler: Scheduler, *sequences: Sequence) -> None:
    for each in sequences:
        scheduler.add(each)
    while not all(each.is_decoding for each in sequences):
        step = scheduler.next_step()
        assert step is not None
        done = [
            each.num_computed + n == len(each.tokens) for each, n in zip(step.sequences, step.num_tokens, strict=True)
        ]
        scheduler.finish_step(step, [[7] if is_done else [] for is_done in done])


def test_drafts_take_no_block_from_anybody_and_wrong_ones_are_computed_again():
    scheduler = Scheduler(num_blocks=3, max_num_seqs=4, max_waiting=4, budget=FixedBudget(512))
    first, second = sequence("first", 14, 40), sequence("second", 10, 16)
    decoding(scheduler, first, second)  # 15 and 11 tokens in a block each; one block is free
    first.drafts, second.drafts = [1] * 7, [2] * 7
    step = scheduler.next_step()
    assert step is not None and scheduler.num_preemptions == 0
    assert dict(zip([s.id for s in step.sequences], step.num_tokens, strict=True)) == {"first": 8, "second": 5}
    scheduler.finish_step(step, [[1, 1, 9], [2, 2, 2, 2, 5]])
    scheduler.check()
    assert first.tokens[-3:] == [1, 1, 9] and first.num_computed == len(first.tokens) - 1
    assert second.tokens[-1] == 5 and len(second.tokens) == 16 and second.num_computed == 15


def test_drafts_never_lead_beyond_the_longest_answer():
    scheduler = Scheduler(num_blocks=9, max_num_seqs=4, max_waiting=4, budget=FixedBudget(512))
    one = sequence("one", BLOCK_TOKENS, BLOCK_TOKENS + 3)
    decoding(scheduler, one)
    one.drafts = [1, 2, 3, 4]
    step = scheduler.next_step()
    assert step is not None and step.num_tokens == (2,) and one.drafts == [1]


def test_sequence_that_is_set_back_drafts_nothing():
    scheduler = Scheduler(num_blocks=9, max_num_seqs=4, max_waiting=4, budget=FixedBudget(512))
    one = sequence("one", 20, 60)
    decoding(scheduler, one)
    one.drafts = [1, 2]
    scheduler.preempt_youngest()
    step = scheduler.next_step()
    assert step is not None and one.drafts == [] and sum(step.num_tokens) == one.num_new
