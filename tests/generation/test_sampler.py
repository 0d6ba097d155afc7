"""Each request's own draws, penalties and log-probabilities."""

from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from engine.generation.sampler import Sampler, _with_penalties, choose, score
from engine.values import SamplingParams

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.9, 0.0, -3.0])


def draws(params: SamplingParams, count: int, prompt: tuple[int, ...] = ()) -> list[int]:
    sampler = Sampler(params, prompt)
    return [choose(LOGITS[None], [sampler])[0][0].token_id for _ in range(count)]


def test_greedy_takes_the_most_probable_token():
    assert draws(SamplingParams(), 3) == [1, 1, 1]


def test_equal_seeds_draw_equally_and_others_do_not():
    first, again, other = (draws(SamplingParams(temperature=2.0, seed=seed), 40) for seed in (7, 7, 8))
    assert first == again != other
    assert draws(SamplingParams(temperature=2.0), 40) != draws(SamplingParams(temperature=2.0), 40)
    assert draws(SamplingParams(temperature=2.0, seed=-1), 40) != first


def test_draw_depends_on_seed_and_position_and_not_on_the_batch():
    alone = draws(SamplingParams(temperature=2.0, seed=7), 12)
    sampler = Sampler(SamplingParams(temperature=2.0, seed=7), ())
    beside = []
    for step in range(12):
        others = [Sampler(SamplingParams(temperature=1.0, seed=step + i), ()) for i in range(step % 4)]
        samplers = [*others, sampler]
        beside.append(choose(LOGITS.expand(len(samplers), -1), samplers)[-1][0].token_id)
    assert beside == alone


def test_draws_of_one_seed_at_all_positions_have_the_exact_distribution():
    """Chi-square over 6,000 tokens in a row (6 cells, 0.1 % critical value)."""
    drawn = torch.tensor(draws(SamplingParams(temperature=1.3, seed=11), 6000))
    expected = 6000 * (LOGITS / 1.3).softmax(-1)
    counts = torch.bincount(drawn, minlength=6)
    assert float(((counts - expected) ** 2 / expected).sum()) < 20.52  # 5 degrees of freedom


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1, 2**64 - 1])
def test_seeds_of_64_bits_are_taken_whole(seed: int):
    params = SamplingParams(temperature=2.0, seed=seed)
    assert draws(params, 20) == draws(params, 20) != draws(SamplingParams(temperature=2.0, seed=seed ^ 2**40), 20)


def test_limit_larger_than_any_vocabulary_is_none():
    params = {"temperature": 2.0, "seed": 3}
    assert draws(SamplingParams(top_k=10**30, **params), 20) == draws(SamplingParams(**params), 20)


def penalised(params: SamplingParams, prompt: tuple[int, ...], answer: tuple[int, ...], draft: tuple[int, ...] = ()):
    """Log-probabilities from which the token after each draft is drawn."""
    sampler = Sampler(params, prompt)
    for token in answer:
        sampler.note(token)
    rows = [(sampler, draft[:n]) for n in range(len(draft) + 1)]
    return _with_penalties(LOGITS.expand(len(rows), -1), rows)


def test_repetition_penalty_is_that_of_transformers_over_prompt_and_answer():
    (ours,) = penalised(SamplingParams(repetition_penalty=1.7), (2, 4), (1,))
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[2, 4, 1]]), LOGITS[None].clone())
    torch.testing.assert_close(ours, theirs[0])


def test_presence_and_frequency_penalties_count_the_answer_alone():
    (ours,) = penalised(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), (0, 1), (3, 3, 5))
    expected = LOGITS - torch.tensor([0, 0, 0, 0.5 + 0.5, 0, 0.5 + 0.25])
    torch.testing.assert_close(ours, expected)


def test_row_behind_drafts_is_penalised_as_if_they_were_said():
    params = SamplingParams(repetition_penalty=1.7, frequency_penalty=0.25)
    rows = penalised(params, (2, 4), (1,), (1, 5, 5))
    for row, answer in zip(rows, [(1,), (1, 1), (1, 1, 5), (1, 1, 5, 5)], strict=True):
        torch.testing.assert_close(row, penalised(params, (2, 4), answer)[0])


def test_penalties_change_a_row_and_leave_its_neighbours_and_the_logits_alone():
    logits = LOGITS.expand(2, -1).clone()
    tired = Sampler(SamplingParams(frequency_penalty=1.0), ())
    plain = Sampler(SamplingParams(), ())
    chosen = [tuple(choice.token_id for (choice,) in choose(logits, [tired, plain])) for _ in range(3)]
    assert chosen == [(1, 1), (3, 1), (1, 1)]
    torch.testing.assert_close(logits, LOGITS.expand(2, -1))


@pytest.mark.parametrize("num_best", [0, 1, 3, 50])
def test_log_probabilities_are_those_of_the_model_before_temperature_and_penalties(num_best: int):
    params = SamplingParams(temperature=0.3, seed=1, repetition_penalty=1.9, logprobs=num_best)
    ((choice,),) = choose(LOGITS[None], [Sampler(params, (1,))])
    expected = LOGITS.log_softmax(-1)
    assert choice.logprob == pytest.approx(float(expected[choice.token_id]))
    best = expected.sort(descending=True)
    count = min(num_best, 6)
    assert [token for token, _ in choice.top] == best.indices[:count].tolist()
    assert [value for _, value in choice.top] == pytest.approx(best.values[:count].tolist())


def test_scores_of_given_tokens_are_their_log_probabilities():
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(0))
    scored = score(logits, [3, 0, 10, 5], 0)
    expected = logits.log_softmax(-1)[torch.arange(4), [3, 0, 10, 5]]
    assert [choice.logprob for choice in scored] == pytest.approx(expected.tolist())
    assert all(choice.top == () for choice in scored)


def test_failed_choice_moves_no_sampler_on():
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), ())
    with pytest.raises(ValueError, match="row 1"):
        choose(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), [sampler, Sampler.greedy()])
    assert sampler.num_drawn == 0


def test_best_tokens_that_are_known_are_not_looked_for_again():
    known = torch.tensor([4, 5])
    samplers = [Sampler.greedy(), Sampler.greedy()]
    chosen = choose(LOGITS.expand(2, -1), samplers, best=known)
    assert [each[0].token_id for each in chosen] == [4, 5]
    drafted = choose(LOGITS.expand(3, -1), samplers, [[4], []], best=torch.tensor([4, 2, 5]))
    assert [[choice.token_id for choice in each] for each in drafted] == [[4, 2], [5]]


@pytest.mark.parametrize("params", [SamplingParams(temperature=1.0, seed=3), SamplingParams(presence_penalty=2.0)])
def test_known_best_tokens_are_not_taken_where_a_row_of_the_batch_wants_something_else(params: SamplingParams):
    other, again = (Sampler(params, ()) for _ in range(2))
    for sampler in (other, again):
        sampler.note(1)
    known = torch.tensor([5, 5])
    chosen = choose(LOGITS.expand(2, -1), [Sampler.greedy(), other], best=known)
    assert chosen == choose(LOGITS.expand(2, -1), [Sampler.greedy(), again])


def test_known_row_without_a_finite_best_token_is_refused_before_anything_is_noted():
    sampler = Sampler(SamplingParams(presence_penalty=0.0), ())
    with pytest.raises(ValueError, match="row 1 of the logits has no finite maximum"):
        choose(LOGITS.expand(2, -1), [sampler, Sampler.greedy()], best=torch.tensor([1, -1]))
    assert sampler.num_drawn == 0
