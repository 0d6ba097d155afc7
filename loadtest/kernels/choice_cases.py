"""Operations that choose tokens: draws, penalties and drafts of a step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.accept_drafts import accept_drafts
from kernels.accept_drafts.reference import accept_drafts_reference
from kernels.penalise import penalise
from kernels.penalise.reference import penalise_reference
from kernels.sampling import sample
from loadtest.bench_format import OURS
from loadtest.kernels.case import Case, Draw, Results

TORCH = "torch"
_ROWS = (1, 32)
_NUM_SEEN, _NUM_DRAFTS = 500, 4


def choice_cases(draw: Draw, vocabulary: int) -> Iterator[Case]:
    """One after the other, so that one's tensors are gone before the next one's come."""
    for rows in _ROWS:
        for is_peaked in (True, False):
            for top_p in (1.0, 0.9):
                yield _sampling(draw, rows, vocabulary, top_p, is_peaked)
        yield _penalties(draw, rows, vocabulary)
        yield _drafts(draw, rows, vocabulary)


def _sampling(draw: Draw, rows: int, vocabulary: int, top_p: float, is_peaked: bool) -> Case:
    """At temperature 0.8. torch draws others, by its own generator; ids are compared with ours in float64.

    Few tokens matter in most steps of a model (peaked); hundreds do where it has no idea (flat).
    """
    logits = draw(rows, vocabulary) * 3
    if is_peaked:
        logits[:, :: max(vocabulary // 50, 1)] += 15
    device = draw.device
    columns = (
        torch.full((rows,), 0.8, device=device),
        torch.zeros(rows, dtype=torch.int64, device=device),
        torch.full((rows,), top_p, device=device),
        torch.zeros(rows, device=device),
        torch.arange(rows, device=device),
        torch.full((rows,), 100, device=device),
    )

    def ours() -> Tensor:
        return sample(logits, *columns, is_checked=False)

    def by_torch() -> Tensor:
        probabilities = (logits.float() / columns[0][:, None]).softmax(-1)
        if top_p == 1:
            return probabilities.multinomial(1).flatten()
        best, ids = probabilities.sort(dim=-1, descending=True)
        best.masked_fill_(best.cumsum(-1) - best >= top_p, 0)
        return ids.gather(1, best.multinomial(1)).flatten()

    def results() -> Results:
        exact = sample(logits, *columns, backend="torch")
        return Results(ours(), exact, exact)

    words = f"{'top_p ' if top_p < 1 else ''}{'peaked' if is_peaked else 'flat'}"
    return Case(
        *("sampling", f"{rows}x{vocabulary} {words}"),
        {OURS: ours, TORCH: by_torch},
        results,
        *(logits.nbytes, 3 * logits.numel()),
    )


def _penalties(draw: Draw, rows: int, vocabulary: int) -> Case:
    """Of the tokens of a prompt and half as many again of an answer, in every row."""
    logits = draw(rows, vocabulary).float()
    random = torch.Generator().manual_seed(3)
    count = min(_NUM_SEEN, vocabulary)
    tokens = torch.stack([torch.randperm(vocabulary, generator=random)[:count] for _ in range(rows)])
    counts = torch.randint(3, tokens.shape, generator=random)
    of_row = torch.arange(rows)[:, None].expand_as(tokens)
    seen = torch.stack([each.flatten() for each in (of_row, tokens, counts)]).int().to(draw.device)
    strengths = torch.tensor([[1.1], [0.5], [0.1]]).repeat(1, rows).to(draw.device)
    tokens, counts = tokens.to(draw.device), counts.to(draw.device)

    def ours(held: Tensor) -> Tensor:
        penalise(held, seen, strengths)
        return held

    def by_torch(held: Tensor) -> Tensor:
        """Row by row, as logits processors do it."""
        for row, ids, number in zip(held, tokens, counts, strict=True):
            values = row[ids]
            values = torch.where(values > 0, values / 1.1, values * 1.1)
            row[ids] = values - torch.where(number > 0, 0.5 + 0.1 * number, 0.0)
        return held

    def results() -> Results:
        exact = penalise_reference(logits.cpu(), seen.cpu(), strengths.cpu()).float()
        return Results(ours(logits.clone()).cpu(), by_torch(logits.clone()).cpu(), exact)

    # Timed calls change the same logits again and again, of their own.
    mine, theirs = logits.clone(), logits.clone()
    return Case(
        *("penalise", f"{rows} rows {count} tokens"),
        {OURS: lambda: ours(mine), TORCH: lambda: by_torch(theirs)},
        results,
        *(seen.nbytes + 2 * 4 * seen.shape[1], 4 * seen.shape[1]),
    )


def _drafts(draw: Draw, requests: int, vocabulary: int) -> Case:
    random = torch.Generator().manual_seed(4)
    drawn = torch.randint(vocabulary, (requests, 1 + _NUM_DRAFTS), generator=random)
    drafts = drawn + (torch.rand(drawn.shape, generator=random) < 0.2).long()
    starts = torch.arange(0, drawn.numel() + 1, 1 + _NUM_DRAFTS)
    exact = torch.tensor(accept_drafts_reference(*(each.flatten().tolist() for each in (drawn, drafts, starts))))
    drawn, drafts, starts = (each.to(draw.device) for each in (drawn, drafts, starts))

    def ours() -> Tensor:
        return accept_drafts(drawn.flatten(), drafts.flatten(), starts)

    def by_torch() -> Tensor:
        """For as many drafts in every request."""
        return (drawn == drafts)[:, :-1].cumprod(1).sum(1) + 1

    return Case(
        *("accept_drafts", f"{requests} requests {_NUM_DRAFTS} drafts"),
        {OURS: ours, TORCH: by_torch},
        lambda: Results(ours().cpu(), by_torch().cpu(), exact),
        *(drawn.nbytes + drafts.nbytes + 2 * starts.nbytes, drawn.numel()),
    )
