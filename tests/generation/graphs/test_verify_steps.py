"""Steps that check drafts are repeated from the recordings of their number of tokens, with and without adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from eager_capture import EagerCapture, eager_graphs
from tiny_adapter import write_tiny_adapter

from engine.generation.adapters.files import read_adapter
from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.runner import Runner
from engine.generation.sequence import PrefixKey, Sequence
from engine.generation.step import Step

SIZES = (1, 2, 4, 8, 16)
CPU = torch.device("cpu")


class SizedCapture(EagerCapture):
    """Notes how many tokens each recording that is repeated has room for."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        repeat = super().record(work)
        kind = work.args[0]  # type: ignore[attr-defined]  # of DecodeGraphs._compute

        def noted() -> None:
            self.sizes.append(kind.size)
            repeat()

        return noted


def drafting(number: int, num_drafts: int, adapter: str = "", slot: int = -1) -> Sequence:
    """An answer of ten tokens in two blocks of its own, with so many guesses of what follows."""
    return Sequence(
        *(str(number), [5 + number] * 10, 4, 30, PrefixKey("", adapter, ""), None),
        drafts=[40 + number] * num_drafts,
        num_computed=9,
        blocks=[2 * number, 2 * number + 1],
        slot=slot,
    )


@pytest.mark.parametrize("has_adapters", [False, True])
@pytest.mark.parametrize(("drafts", "size"), [((0, 0), 2), ((1, 0, 0), 4), ((3, 0), 8), ((7, 3, 1), 16)])
def test_step_takes_the_recording_of_its_drafts_and_gives_the_same(
    tiny_model: Path, tmp_path: Path, drafts: tuple[int, ...], size: int, has_adapters: bool
):
    spec = read_spec(tiny_model)
    decoder = Decoder(tiny_model, spec, dtype=torch.float32, device="cpu")
    attention = GpuAttention(spec, num_blocks=8, max_model_len=64, dtype=torch.float32, device=CPU)
    for tensor in (attention._cache.keys, attention._cache.values):
        tensor.normal_(generator=torch.Generator().manual_seed(0))
    store = AdapterStore(spec, num_slots=2, dtype=torch.float32, device=CPU, backend="torch")
    _, weights = read_adapter(
        write_tiny_adapter(tmp_path / "A", tiny_model, seed=1),
        "A",
        spec,
        model_digest="",
        max_rank=8,
        dtype=torch.float32,
    )
    packed = store.pack(weights)
    capture = SizedCapture()
    graphs = eager_graphs(decoder, attention, store, capture=capture, sizes=SIZES)
    sequences = tuple(
        drafting(number, count, *((packed.digest, 0) if has_adapters and number == 0 else ("", -1)))
        for number, count in enumerate(drafts)
    )
    step = Step(sequences, tuple(1 + count for count in drafts))
    plain = Runner(decoder, attention, store, lambda digest: packed).run(step)
    expected = [plain.logits[slice(*span)].clone() for span in plain.spans]
    repeated = Runner(decoder, attention, store, lambda digest: packed, graphs).run(step)
    assert capture.sizes == [size]
    for index, span in enumerate(repeated.spans):
        torch.testing.assert_close(repeated.logits[slice(*span)], expected[index], rtol=1e-4, atol=1e-4)
    assert repeated.best is not None and len(repeated.best) == sum(drafts) + len(drafts)
