"""The generation bench over a tiny checkpoint: all systems answer in full, and names are the contract's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_model import write_tiny_model

from loadtest import bench_generation
from loadtest.bench_generation import FULL, QUICK, Findings, PeerChoice, Plan, measure
from loadtest.generation.workloads import Trace
from loadtest.peers import llama_cpp

TINY = Plan(
    {1: 2, 4: 4},
    {2: 3},
    rounds=2,
    slow_rounds=1,
    profiles=("2x40",),
    llama_formats=("Q4_0",),
    widest_trial=0,
    lora={2: 4},
)


@pytest.fixture
def trace() -> Trace:
    chunks = tuple(tuple(10 + (7 * chunk + i) % 300 for i in range(30)) for chunk in range(6))
    requests = tuple(
        ((n % 6, (n + 1) % 6, (n + 2) % 6, (n + 3) % 6), tuple(range(20, 28)), 3 + n % 4) for n in range(96)
    )
    return Trace(tuple(range(50, 70)), chunks, requests)


def test_bench_of_a_tiny_model_names_rows_and_ratios_as_promised(
    tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(llama_cpp, "folder", lambda: tmp_path / "nothing here")
    model = write_tiny_model(tmp_path / "model")
    report = measure(model, TINY, trace, Console(quiet=True), dtype="float32")
    report.write_json(tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    ratios = {(ratio["case"], ratio["ours_over"]) for ratio in content["ratios"] if ratio["metric"] == "output_tok_s"}
    generate, batch = "transformers generate", "transformers generate_batch"
    assert ratios == {
        *((f"free c={c}", peer) for c in (1, 4) for peer in (generate, batch)),
        ("rag c=2", generate),
        ("lora8 c=2", "one adapter"),
        ("base with adapters on c=2", "adapters off"),
    }
    assert all(ratio["value"] > 0 for ratio in content["ratios"])
    assert "make bench-peers" in content["missing_peers"]["llama.cpp"]
    step = content["bounds"]["steps"]["2x40"]
    parts = {"linear", "attention", "rope and kv write", "norm and residual", "activation", "sampling", "rest"}
    assert set(step) == {"bound", "step", *parts} and step["linear"] > 0
    assert {row["case"] for row in content["rows"]} >= {"ttft cold", "ttft warm", "gaps"}


async def test_llama_takes_the_best_of_all_formats_then_of_the_other_settings(monkeypatch: pytest.MonkeyPatch):
    rates = {("Q8_0", 8, 2): 30.0, ("Q8_0", 4, 2): 40.0}
    tried = []

    async def rate(setting: tuple[str, int, int], jobs: object, clients: int) -> float:
        tried.append(setting)
        return rates.get(setting, 10.0)

    monkeypatch.setattr(bench_generation, "_llama_rate", rate)
    monkeypatch.setattr(bench_generation, "usable_cores", lambda: 2)
    found = Findings()
    choice = PeerChoice(FULL, found, with_llama=True)
    assert await choice.llama("rag c=8", (), 8) == ("Q8_0", 4, 2)
    assert {weights for weights, _, _ in tried} == set(llama_cpp.FORMATS) and len(set(tried)) == len(tried) == 5
    assert found.extra["llama.cpp settings"]["rag c=8"]["taken"] == "Q8_0, 4 slots, 2 threads"


@pytest.mark.parametrize("rated", [{"bfloat16": 2.0, "float32": 3.0}, {"bfloat16": 3.0, "float32": 2.0}])
async def test_transformers_runs_in_the_format_that_is_faster_for_the_case(rated: dict[str, float]):
    class Peer:
        name = bench_generation.GENERATE

        def __init__(self, seconds: float) -> None:
            self._seconds = seconds

        async def seconds(self, jobs: object, clients: int) -> float:
            return self._seconds

    peers = {dtype: [Peer(seconds)] for dtype, seconds in rated.items()}
    found = Findings()
    best = min(rated, key=lambda dtype: rated[dtype])
    choice = PeerChoice(FULL, found, with_llama=False)
    assert await choice.dtype("free c=8", (), 8, peers) == best
    assert found.extra["transformers dtype"]["free c=8"]["taken"] == best
    # Wider cases are not tried.
    assert await choice.dtype("free c=32", (), 32, peers) == "float32"


async def test_wide_case_takes_the_format_of_the_widest_one_tried(monkeypatch: pytest.MonkeyPatch):
    async def rate(setting: tuple[str, int, int], jobs: object, clients: int) -> float:
        return {"BF16": 3.0}.get(setting[0], 2.0)

    monkeypatch.setattr(bench_generation, "_llama_rate", rate)
    monkeypatch.setattr(bench_generation, "usable_cores", lambda: 2)
    choice = PeerChoice(FULL, Findings(), with_llama=True)
    await choice.llama("rag c=8", (), 8)
    assert await choice.llama("rag c=32", (), 32) == ("BF16", 32, 2)
    assert await PeerChoice(QUICK, Findings(), with_llama=True).llama("rag c=2", (), 2) == ("Q4_0", 2, 2)
    assert await PeerChoice(QUICK, Findings(), with_llama=False).llama("rag c=2", (), 2) is None
