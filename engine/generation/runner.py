"""From a step of the scheduler to logits: one forward over the new tokens of all its sequences."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from engine.generation.adapters.store import AdapterStore, PackedAdapter
from engine.generation.attention.base import Attention, FlatBatch
from engine.generation.decoder.model import Decoder
from engine.generation.graphs.decode_graphs import DecodeGraphs
from engine.generation.graphs.draws import Draw
from engine.generation.sequence import BLOCK_TOKENS, Sequence
from engine.generation.step import Step
from engine.generation.step_inputs import StepInputs

# Each new number of rows costs oneDNN a few milliseconds once, so on a CPU larger steps are rounded up.
_MAX_EXACT_ROWS = 16
_ROW_MULTIPLE = 4


@dataclass(frozen=True, slots=True)
class StepLogits:
    """`logits` [R, V] in the model's dtype; rows [spans[i][0], spans[i][1]) belong to the step's sequence i.

    A sequence has no row while its prompt is incomplete, one where its next token is to be chosen and one for each of
    its drafts (always the last ones), and one for each new token where the logits of its prompt, all or the last ones,
    are wanted. `best` [R] int64 is each row's best token, -1 where its logit is no number; None: nobody looked for it.
    Both may be overwritten by the next step.
    """

    logits: Tensor
    spans: tuple[tuple[int, int], ...]
    best: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on the device, in which row `rows[i]` is that of sequence i; `read` waits for the tokens of all rows."""

    step: Step
    rows: tuple[int, ...]
    read: Callable[[], list[int]]

    def token_ids(self) -> list[int]:
        """The next token of each sequence, -1 where its logits are no numbers. Raises: what the device says."""
        found = self.read()
        return [found[row] for row in self.rows]


class Runner:
    """Runs steps. One thread calls it. `idle_s`: that it wants to `beat` so often while there is nothing to run."""

    idle_s: float | None = None

    def __init__(
        self,
        decoder: Decoder,
        attention: Attention,
        store: AdapterStore | None = None,
        adapter_of: Callable[[str], PackedAdapter | None] = lambda digest: None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        """`adapter_of` gives an adapter by its digest, to be put into `store` when a sequence has a new slot.

        Steps that `graphs` has recorded, or can record, are repeated from there.
        """
        self._decoder = decoder
        self._attention = attention
        self._store = store
        self._adapter_of = adapter_of
        self._graphs = graphs

    def prepare(self) -> None:
        """Record what is repeated, before the first request."""
        if self._graphs is not None:
            self._graphs.prepare()

    @property
    def max_repeated_tokens(self) -> int:
        """Of the largest step that is recorded; 0 where none is."""
        return 0 if self._graphs is None else self._graphs.max_tokens

    @property
    def num_recorded(self) -> int:
        """Steps that can be repeated now."""
        return 0 if self._graphs is None else self._graphs.num_recorded

    @torch.inference_mode()
    def run(self, step: Step) -> StepLogits:
        """Compute keys and values of the step's new tokens, and the logits that somebody looks at.

        Running the same step again gives the same: nothing advances here.
        """
        # Few new tokens first, as attention on a CPU wants them; those of one adapter side by side.
        order = sorted(range(len(step.sequences)), key=lambda i: (step.num_tokens[i], step.sequences[i].slot))
        token_ids: list[int] = []
        rows: list[int] = []
        spans = [(0, 0)] * len(order)
        for index in order:
            sequence, num_new = step.sequences[index], step.num_tokens[index]
            stop = sequence.num_computed + num_new
            token_ids += sequence.tokens[sequence.num_computed : stop] + sequence.drafts
            wanted = _num_logits(sequence, num_new)
            spans[index] = (len(rows), len(rows) + wanted)
            rows += range(len(token_ids) - wanted, len(token_ids))
        batch = FlatBatch(
            num_new=[step.num_tokens[index] for index in order],
            contexts=[step.sequences[index].num_computed + step.num_tokens[index] for index in order],
            block_tables=[step.sequences[index].blocks for index in order],
            num_padding=self._num_padding(len(token_ids)),
        )
        runs = self._adapter_runs(step, order)
        if self._graphs is not None and len(rows) == len(token_ids):
            repeated = self._graphs.run(token_ids, batch, runs)
            if repeated is not None:
                return StepLogits(repeated[0], tuple(spans), repeated[1])
        return StepLogits(self.compute(StepInputs(token_ids, batch, rows, runs)), tuple(spans))

    @torch.inference_mode()
    def compute(self, inputs: StepInputs) -> Tensor:
        """Logits [R, V] of one forward, operation by operation; the adapters of `inputs` lie in their slots."""
        device, padding = self._decoder.device, inputs.batch.num_padding
        adapters = self._store.plan(inputs.runs) if self._store is not None and inputs.runs else None
        padded = torch.tensor(inputs.token_ids + [0] * padding, device=device)
        wanted = torch.tensor(inputs.rows, dtype=torch.long, device=device)
        return self._decoder.forward(padded, self._attention, self._attention.plan(inputs.batch), wanted, adapters)

    @torch.inference_mode()
    def launch(self, step: Step, draws: SequenceOf[Draw] = (), before: Launched | None = None) -> Launched | None:
        """Begin a step of decodes and wait for nothing; None where it is not recorded.

        `draws` say how the token of each sequence is drawn; empty: the best ones. With `before`, which is on the
        device, `step` is ahead of it: its tokens are those that `before` chooses for the same sequences. At most two
        launched steps may be unread at once.
        """
        if self._graphs is None:
            return None
        order = sorted(range(len(step.sequences)), key=lambda i: step.sequences[i].slot)
        sequences = [step.sequences[index] for index in order]
        if before is None:
            tokens = [sequence.tokens[-1] for sequence in sequences]
        else:
            row_before = dict(zip(before.step.sequences, before.rows, strict=True))
            tokens = [row_before[sequence] for sequence in sequences]
        batch = FlatBatch(
            num_new=[1] * len(sequences),
            contexts=[sequence.num_computed + 1 + step.is_ahead for sequence in sequences],
            block_tables=[sequence.blocks for sequence in sequences],
        )
        ordered = [draws[index] for index in order] if draws else ()
        read = self._graphs.launch(tokens, batch, self._adapter_runs(step, order), ordered, is_ahead=step.is_ahead)
        if read is None:
            return None
        rows = [0] * len(order)
        for row, index in enumerate(order):
            rows[index] = row
        return Launched(step, tuple(rows), read)

    @torch.inference_mode()
    def copy_blocks(self, pairs: SequenceOf[tuple[int, int]]) -> None:
        """Copy the keys and values of KV blocks, (from, to), as if all at once."""
        self._attention.copy_blocks([source for source, _ in pairs], [target for _, target in pairs])

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        """Put an adapter into a slot of the device."""
        assert self._store is not None
        self._store.put(slot, adapter)

    def beat(self) -> None:
        """See whether everything that steps need is there."""

    def close(self) -> None:
        """No step comes any more."""

    @torch.inference_mode()
    def measure(self, num_tokens: int, *, is_decode: bool, num_before: int = 0) -> float:
        """Seconds of one step of `num_tokens` decodes, or of one prompt chunk behind `num_before` tokens.

        Overwrites the first blocks.
        """
        context = num_before + num_tokens
        if is_decode:
            batch = FlatBatch([1] * num_tokens, [1] * num_tokens, [[i // BLOCK_TOKENS] for i in range(num_tokens)])
        else:
            batch = FlatBatch([num_tokens], [context], [list(range(-(-context // BLOCK_TOKENS)))])
        rows = list(range(num_tokens)) if is_decode else [num_tokens - 1]
        started = perf_counter()
        repeated = self._graphs.run([0] * num_tokens, batch, []) if is_decode and self._graphs is not None else None
        inputs = StepInputs([0] * num_tokens, batch, rows)
        best = self.compute(inputs).argmax(-1) if repeated is None else repeated[1]
        best.tolist()
        return perf_counter() - started

    def _adapter_runs(self, step: Step, order: SequenceOf[int]) -> list[tuple[int, int, int]]:
        """Put the step's adapters where they are not yet; start, stop and slot of the rows that use them."""
        runs: list[tuple[int, int, int]] = []
        if self._store is None:
            return runs
        start = 0
        for index in order:
            sequence, stop = step.sequences[index], start + step.num_tokens[index]
            if sequence.slot >= 0:
                self._put(sequence)
                if runs and runs[-1][1:] == (start, sequence.slot):
                    runs[-1] = (runs[-1][0], stop, sequence.slot)
                else:
                    runs.append((start, stop, sequence.slot))
            start = stop
        return runs

    def _put(self, sequence: Sequence) -> None:
        digest = sequence.key.adapter
        if self._store is not None and not self._store.holds(sequence.slot, digest):
            adapter = self._adapter_of(digest)
            if adapter is None:
                raise RuntimeError(f"adapter {digest[:12]} has a slot and no weights")
            self.place(sequence.slot, adapter)

    def _num_padding(self, num_tokens: int) -> int:
        if self._decoder.device.type != "cpu" or num_tokens <= _MAX_EXACT_ROWS:
            return 0
        return -num_tokens % _ROW_MULTIPLE


def _num_logits(sequence: Sequence, num_new: int) -> int:
    if sequence.needs_prompt_logits and sequence.num_computed < sequence.num_prompt_tokens:
        return max(min(num_new, sequence.num_computed + num_new - sequence.num_unscored), 0)
    num_known = len(sequence.tokens) + len(sequence.drafts)
    return 1 + len(sequence.drafts) if sequence.num_computed + num_new == num_known else 0
