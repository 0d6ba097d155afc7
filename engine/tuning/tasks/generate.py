"""Greedy answers of the model that is trained, in batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from engine.tuning.tasks.encoding import Tokens, like_lengths
from engine.tuning.training.model import AdapterModel

# Prompts of one batch, padded to the longest.
MAX_BATCH_TOKENS, MAX_BATCH = 8192, 32


def generate(
    model: AdapterModel, prompts: Sequence[Tokens], *, max_tokens: int, end_tokens: Collection[int]
) -> list[Tokens]:
    """The tokens of each answer, up to `max_tokens` of them and without the one that ends it."""
    answers: list[Tokens] = [()] * len(prompts)
    ends = sorted(end_tokens)
    with model.generating() as peft, torch.no_grad():
        for batch in like_lengths(prompts, most=MAX_BATCH, most_tokens=MAX_BATCH_TOKENS):
            longest = max(len(prompts[row]) for row in batch)
            # On the left, so that all of them go on at the same place.
            ids = [[ends[0]] * (longest - len(prompts[row])) + list(prompts[row]) for row in batch]
            mask = [[0] * (longest - len(prompts[row])) + [1] * len(prompts[row]) for row in batch]
            out = peft.generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max_tokens,
                do_sample=False,
                # The model's own sampling settings would only be warned about.
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
            for row, tokens in zip(batch, out[:, longest:].tolist(), strict=True):
                end = next((place for place, token in enumerate(tokens) if token in end_tokens), len(tokens))
                answers[row] = tuple(tokens[:end])
    return answers
