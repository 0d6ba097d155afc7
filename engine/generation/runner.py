"""Forward passes over a batch whose rows come and go. One thread calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class BatchRunner:
    """The model with the keys and values of the running batch: [N, KV heads, L, D] per layer, padded on the left.

    Rows keep the order in which they were prefilled. Every token of the batch costs L slots times N rows, padding
    included, so callers bound N times the longest row.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._device: torch.device = model.device
        self._lengths: list[int] = []
        self._cache = DynamicCache()
        self._joining: list[DynamicCache] = []

    @property
    def kv_tokens(self) -> int:
        """Token slots taken, padding included."""
        return len(self._lengths) * max(self._lengths, default=0)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add a row for each prompt, in one forward. Returns [N, V] float32 logits of the tokens after them."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        padded = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = self._padding_mask(lengths, longest)
        # Without a configuration the cache keeps whole rows for sliding windows too; the mask does the windowing.
        cache = DynamicCache()
        logits: Tensor = self._model(
            input_ids=padded.to(self._device),
            attention_mask=mask,
            position_ids=None if mask is None else (mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._joining.append(cache)
        self._lengths += lengths
        return logits[:, -1].float()

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int]) -> Tensor:
        """Append one token to each row. Returns [N, V] float32 logits of the tokens after them."""
        self._join()
        lengths = [length + 1 for length in self._lengths]
        logits: Tensor = self._model(
            input_ids=torch.tensor(token_ids, device=self._device)[:, None],
            attention_mask=self._padding_mask(lengths, max(lengths)),
            position_ids=torch.tensor(self._lengths, device=self._device)[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._lengths = lengths
        return logits[:, -1].float()

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the padding that the kept ones have in common."""
        self._join()
        if not rows:
            self.clear()
            return
        trim = max(self._lengths) - max(self._lengths[row] for row in rows)
        index = torch.tensor(rows, device=self._device)
        for layer in self._cache.layers:
            layer.keys = layer.keys[:, :, trim:].index_select(0, index)
            layer.values = layer.values[:, :, trim:].index_select(0, index)
        self._lengths = [self._lengths[row] for row in rows]

    def clear(self) -> None:
        """Drop every row, also after a forward that failed half-way."""
        self._lengths, self._cache, self._joining = [], DynamicCache(), []

    def warm_up(self) -> None:
        """Run each kind of forward once, so that the first request does not pay for set-up."""
        self.prefill([[0] * 32])
        self.prefill([[0] * 16, [0] * 8])
        self.decode([0, 0, 0])
        self.clear()

    def _padding_mask(self, lengths: Sequence[int], longest: int) -> Tensor | None:
        """[N, longest] int64, 0 where a row is padded; None when no row is, which spares the attention a mask."""
        if min(lengths) == longest:
            return None
        padding = longest - torch.tensor(lengths, device=self._device)
        return (torch.arange(longest, device=self._device) >= padding[:, None]).long()

    def _join(self) -> None:
        """Merge the rows prefilled since the last step into the batch."""
        if not self._joining:
            return
        parts = [*([self._cache] if self._cache.layers else []), *self._joining]
        self._joining = []
        if len(parts) > 1:
            for layer, *others in zip(*(part.layers for part in parts), strict=True):
                layer.keys = _stack_left_padded([layer.keys, *(other.keys for other in others)])
                layer.values = _stack_left_padded([layer.values, *(other.values for other in others)])
        self._cache = parts[0]


def _stack_left_padded(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate [N_i, H, L_i, D] to [sum N_i, H, max L_i, D], zeros on the left of the shorter ones."""
    longest = max(part.shape[2] for part in parts)
    _, heads, _, head_dim = parts[0].shape
    # Zeros rather than anything: a masked value is multiplied by zero, which would not stop a NaN.
    stacked = parts[0].new_zeros((sum(part.shape[0] for part in parts), heads, longest, head_dim))
    row = 0
    for part in parts:
        stacked[row : row + part.shape[0], :, longest - part.shape[2] :] = part
        row += part.shape[0]
    return stacked
