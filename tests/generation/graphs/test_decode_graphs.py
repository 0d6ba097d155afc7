"""Recorded steps: when one is made, which one serves, and that an engine with them answers the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_capture import EagerCapture, eager_graphs, repeat_in_engines
from tiny_adapter import write_tiny_adapter

from engine.config import GeneratorSettings
from engine.generation import engine as engine_module
from engine.generation.adapters.files import AdapterWeights, read_adapter, target_shapes
from engine.generation.adapters.store import AdapterStore
from engine.generation.attention.base import FlatBatch
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.engine import Engine
from engine.generation.graphs.build import build_graphs
from engine.generation.graphs.draws import Draw, DrawBuffers
from engine.generation.runner import Runner
from engine.generation.warm_up import measure_least_chunk, measure_steps
from engine.values import GenerationRequest, Grammar, SamplingParams
from kernels.sampling import sample

SETTINGS = GeneratorSettings(dtype="float32", threads=1, max_model_len=256, kv_tokens=4096, adapter_slots=2)
NUM_NEW = 20


class Bench:
    """A decoder and its attention, of which the first blocks hold something."""

    def __init__(self, path: Path) -> None:
        spec = read_spec(path)
        self.decoder = Decoder(path, spec, dtype=torch.float32, device="cpu")
        self.attention = GpuAttention(
            spec, num_blocks=32, max_model_len=256, dtype=torch.float32, device=self.decoder.device
        )
        for tensor in (self.attention._cache.keys, self.attention._cache.values):
            tensor.normal_()

    @torch.inference_mode()
    def logits(self, token_ids: list[int], batch: FlatBatch) -> torch.Tensor:
        rows = torch.arange(len(token_ids))
        return self.decoder.forward(torch.tensor(token_ids), self.attention, self.attention.plan(batch), rows)


@pytest.fixture(scope="module")
def bench(tiny_model: Path) -> Bench:
    return Bench(tiny_model)


BATCH = FlatBatch([1, 1, 3], [5, 40, 33], [[3], [4, 5, 6], [7, 8, 9]])
TOKENS = [5, 6, 7, 8, 9]


def decodes(count: int) -> tuple[list[int], FlatBatch]:
    return list(range(3, 3 + count)), FlatBatch([1] * count, [1] * count, [[i] for i in range(count)])


def test_repeated_step_gives_the_logits_of_the_step_itself_and_their_best_tokens(bench: Bench):
    graphs = eager_graphs(bench.decoder, bench.attention)
    expected = bench.logits(TOKENS, BATCH)
    for _ in range(2):
        found = graphs.run(TOKENS, BATCH, [])
        assert found is not None
        torch.testing.assert_close(found[0], expected)
        assert found[1].tolist() == expected.argmax(-1).tolist()
        graphs.run(*decodes(1), [])  # writes to a block of nobody's here


def test_recording_writes_no_keys_or_values(bench: Bench):
    cache = bench.attention._cache
    before = cache.keys.clone(), cache.values.clone()
    eager_graphs(bench.decoder, bench.attention).prepare()
    assert torch.equal(cache.keys, before[0]) and torch.equal(cache.values, before[1])


def test_best_token_of_logits_that_are_no_numbers_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    forward = bench.decoder.forward

    def broken(*arguments: Any) -> torch.Tensor:
        return forward(*arguments).index_fill(0, torch.tensor([1]), float("nan"))

    monkeypatch.setattr(bench.decoder, "forward", broken)
    found = eager_graphs(bench.decoder, bench.attention).run(TOKENS, BATCH, [])
    assert found is not None
    assert [token < 0 for token in found[1].tolist()] == [False, True, False, False, False]


def test_each_size_is_recorded_once_and_larger_steps_are_not(bench: Bench):
    capture = EagerCapture()
    graphs = eager_graphs(bench.decoder, bench.attention, capture=capture, sizes=(1, 2, 4))
    for count in (1, 3, 4, 3, 1):
        assert graphs.run(*decodes(count), []) is not None
    assert graphs.run(*decodes(5), []) is None
    assert (capture.num_recorded, capture.num_repeats) == (2, 5)
    graphs.prepare()
    assert graphs.num_recorded == capture.num_recorded == 3


def test_launched_steps_take_their_tokens_from_the_step_before(bench: Bench):
    graphs = eager_graphs(bench.decoder, bench.attention)
    tokens, batch = decodes(3)
    first = bench.logits(tokens, batch).argmax(-1).tolist()
    behind = FlatBatch([1, 1], [2, 2], [[2], [0]])  # of the third and the first
    second = bench.logits([first[2], first[0]], behind).argmax(-1).tolist()
    read_first = graphs.launch(tokens, batch, [])
    read_second = graphs.launch([2, 0], behind, [], is_ahead=True)
    assert read_first is not None and read_second is not None
    assert read_first() == first and read_second() == second


def test_step_ahead_is_launched_only_from_a_recording_that_is_there(bench: Bench):
    capture = EagerCapture()
    graphs = eager_graphs(bench.decoder, bench.attention, capture=capture, sizes=(1, 2, 4))
    read = graphs.launch(*decodes(4), [])
    best = bench.logits(*decodes(4)).argmax(-1).tolist()
    assert read is not None
    assert graphs.launch([3, 2], FlatBatch([1, 1], [2, 2], [[3], [2]]), [(0, 1, 0)], is_ahead=True) is None
    assert graphs.launch([3], FlatBatch([1], [513], [[3]]), [], is_ahead=True) is None
    assert capture.num_recorded == 1 and read() == best


def test_step_ahead_of_logits_that_are_no_numbers_is_computed_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    forward = bench.decoder.forward
    monkeypatch.setattr(bench.decoder, "forward", lambda *arguments: forward(*arguments) * float("nan"))
    graphs = eager_graphs(bench.decoder, bench.attention)
    reads = [
        graphs.launch(*decodes(1), []),
        graphs.launch([0], FlatBatch([1], [2], [[0]]), [], is_ahead=True),
    ]
    assert [read() for read in reads if read is not None] == [[-1], [-1]]


def test_contexts_beyond_the_longest_are_not_repeated(bench: Bench):
    graphs = eager_graphs(bench.decoder, bench.attention, max_model_len=32)
    for context, is_repeated in ((32, True), (33, False)):
        assert (graphs.run([5], FlatBatch([1], [context], [[1, 2, 3]]), []) is not None) == is_repeated


def test_where_memory_is_used_up_a_larger_recording_serves_or_none(bench: Bench):
    capture = EagerCapture(each=10)
    graphs = eager_graphs(bench.decoder, bench.attention, capture=capture, sizes=(1, 2, 4), max_bytes=5)
    expected = bench.logits(*decodes(1))
    assert graphs.run(*decodes(2), []) is not None
    found = graphs.run(*decodes(1), [])
    assert found is not None
    torch.testing.assert_close(found[0], expected)
    assert graphs.run(*decodes(3), []) is None
    assert capture.num_recorded == 1


def test_recording_that_fails_is_said_once_and_steps_run_without(bench: Bench, caplog: pytest.LogCaptureFixture):
    class Failing(EagerCapture):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            if self.num_recorded == 1:
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().record(work)

    graphs = eager_graphs(bench.decoder, bench.attention, capture=Failing())
    assert graphs.run(*decodes(1), []) is not None
    with caplog.at_level(logging.WARNING):
        assert [graphs.run(*decodes(count), []) for count in (2, 4, 1)] == [None] * 3
        graphs.prepare()
    assert len(caplog.records) == 1 and "cannot be recorded" in caplog.text


def test_drawn_tokens_are_those_of_the_step_itself_and_have_recordings_of_their_own(bench: Bench):
    capture = EagerCapture()
    graphs = eager_graphs(bench.decoder, bench.attention, capture=capture)
    draws = [Draw(0.0, 0, 1.0, 0.0, 0, 0), Draw(1.0, 0, 0.9, 0.0, -5, 3), Draw(1.5, 7, 1.0, 0.01, 2**63 - 1, 4)]
    columns = zip(*draws, strict=True)
    types = (torch.float32, torch.int64, torch.float32, torch.float32, torch.int64, torch.int64)
    settings = [torch.tensor(column, dtype=dtype) for column, dtype in zip(columns, types, strict=True)]
    tokens, batch = decodes(3)
    expected = sample(bench.logits(tokens, batch), *settings).tolist()
    for given, wanted in ((draws, expected), ([], bench.logits(tokens, batch).argmax(-1).tolist()), (draws, expected)):
        read = graphs.launch(tokens, batch, [], given)
        assert read is not None and read() == wanted
    assert expected != bench.logits(tokens, batch).argmax(-1).tolist()
    assert capture.num_recorded == 2


def test_draws_that_cannot_be_recorded_leave_the_recordings_without(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*arguments: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = eager_graphs(bench.decoder, bench.attention)
    monkeypatch.setattr(DrawBuffers, "sample", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert graphs.launch(*decodes(1), [], [Draw(1.0, 0, 1.0, 0.0, 1, 1)]) is None
            assert graphs.launch(*decodes(1), []) is not None
    assert len(caplog.records) == 1 and "draws cannot be recorded" in caplog.text


def test_adapters_whose_tensors_are_replaced_are_recorded_anew(bench: Bench, tiny_model: Path, tmp_path: Path):
    spec = bench.decoder.spec
    store = AdapterStore(spec, num_slots=2, dtype=torch.float32, device=bench.decoder.device, backend="torch")
    capture = EagerCapture()
    graphs = eager_graphs(bench.decoder, bench.attention, store, capture=capture)
    runs = [(0, 1, 0)]
    for slot, rank, recordings in ((0, 8, 1), (1, 8, 1), (1, 16, 2)):
        folder = write_tiny_adapter(tmp_path / f"{slot} {rank}", tiny_model, seed=rank, rank=rank)
        _, weights = read_adapter(folder, "A", spec, model_digest="", max_rank=64, dtype=torch.float32)
        store.put(slot, store.pack(weights))
        assert graphs.run(*decodes(1), runs) is not None
        assert capture.num_recorded == recordings
    with torch.inference_mode():
        tokens, batch = decodes(1)
        plan = bench.attention.plan(batch)
        expected = bench.decoder.forward(torch.tensor(tokens), bench.attention, plan, torch.arange(1), store.plan(runs))
    found = graphs.run(*decodes(1), runs)
    assert found is not None
    torch.testing.assert_close(found[0], expected)
    assert (found[0] - bench.logits(*decodes(1))).abs().max() > 0.1


def test_adapters_tensors_only_grow_on_a_gpu(bench: Bench):
    spec = bench.decoder.spec
    shapes = target_shapes(spec)

    def ranks(device: str) -> list[int]:
        store = AdapterStore(spec, num_slots=1, dtype=torch.float32, device=torch.device(device), backend="torch")
        found = []
        for rank in (8, 16, 8):
            pairs = {(0, "o"): (torch.zeros(rank, shapes["o"][1]), torch.zeros(shapes["o"][0], rank))}
            store.put(0, store.pack(AdapterWeights(str(rank), rank, pairs)))
            output = store.fixed_plan(torch.zeros(1, dtype=torch.int32)).layers[0].output
            assert output is not None
            found.append(output.rank)
        return found

    assert ranks("cpu") == [8, 16, 8]
    assert ranks("meta") == [8, 16, 16]  # like a GPU, no CPU


def test_steps_are_timed_as_they_will_run(bench: Bench):
    plain = Runner(bench.decoder, bench.attention)
    assert measure_steps(plain, max_decodes=2, max_tokens=128).keys() == {1, 2, 128}
    assert measure_least_chunk(plain, max_tokens=128) == 0
    capture = EagerCapture()
    graphs = eager_graphs(bench.decoder, bench.attention, capture=capture, sizes=(1, 2, 4, 8))
    runner = Runner(bench.decoder, bench.attention, graphs=graphs)
    assert measure_steps(runner, max_decodes=2, max_tokens=128).keys() == {1, 2, 4, 8, 128}
    assert (capture.num_recorded, capture.num_repeats) == (4, 16)
    assert measure_least_chunk(runner, max_tokens=128) > 0


def test_cpu_and_settings_that_say_off_have_no_recordings(bench: Bench):
    assert build_graphs(bench.decoder, bench.attention, None, SETTINGS, max_model_len=64) is None
    off = SETTINGS.model_copy(update={"cuda_graphs": "off"})
    assert build_graphs(bench.decoder, bench.attention, None, off, max_model_len=64) is None


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> EagerCapture:
    return repeat_in_engines(monkeypatch)


async def answers(engine: Engine) -> list[list[tuple[int, float]]]:
    """Tokens and log-probabilities of a batch in which everything is asked for that there is, with room for few."""
    grammar = Grammar("regex", "[a-z]{5,30}")
    asked: list[dict[str, Any]] = [
        {},
        {"adapter": "A"},
        {"adapter": "B"},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.7, "seed": 5, "top_p": 0.8, "adapter": "A"},
        {"frequency_penalty": 1.0},
        {"grammar": grammar},
        {"grammar": grammar, "temperature": 1.0, "seed": 6},
        {"drafts": False},
        {"logprobs": None, "stop": ("zz",)},
    ]

    async def ask(number: int) -> list[tuple[int, float]]:
        extra = dict(asked[number % len(asked)])
        mine = {name: extra.pop(name) for name in ("adapter", "grammar", "drafts") if name in extra}
        sampling = SamplingParams(**{"max_tokens": NUM_NEW, "ignore_eos": "grammar" not in mine, "logprobs": 0} | extra)
        prompt = tuple(40 + (number * 7 + i * (1 + number % 3)) % 200 for i in range(8 + 11 * number))
        request = GenerationRequest(str(number), (), sampling=sampling, prompt_token_ids=prompt, **mine)
        said: list[tuple[int, float]] = []
        async for delta in engine.submit(request):
            said += [(token.token_id, token.logprob) for token in delta.logprobs or ()]
        return said

    first = list(await asyncio.gather(*map(ask, range(16))))
    return first + list(await asyncio.gather(*map(ask, range(16))))  # with prefixes


class RestlessEngine(Engine):
    """Sets its youngest answer back after every ninth step."""

    num_steps = 0

    def _step(self) -> None:
        super()._step()
        self.num_steps += 1
        if self.num_steps % 9 == 0:
            self._scheduler.preempt_youngest()


def test_engine_answers_the_same_with_and_without(
    capture: EagerCapture, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    adapters = {
        name: write_tiny_adapter(tmp_path / name, tiny_model, seed=seed, rank=rank)
        for seed, (name, rank) in enumerate({"A": 4, "B": 12}.items())
    }

    def run(engine_class: type[Engine]) -> tuple[list[list[tuple[int, float]]], int]:
        engine = engine_class(tiny_model, SETTINGS)
        try:
            for name, folder in adapters.items():
                engine.load_adapter(name, folder)
            return asyncio.run(answers(engine)), engine._scheduler.num_preemptions
        finally:
            engine.close()

    repeated, num_preempted = run(RestlessEngine)
    num_repeats = capture.num_repeats
    monkeypatch.setattr(engine_module, "build_graphs", lambda *args, **kwargs: None)
    plain, _ = run(Engine)
    assert num_repeats > 20 and capture.num_repeats == num_repeats and num_preempted > 0
    for number, (mine, expected) in enumerate(zip(repeated, plain, strict=True)):
        assert [token for token, _ in mine] == [token for token, _ in expected], number
        assert [value for _, value in mine] == pytest.approx([value for _, value in expected], abs=1e-3)
