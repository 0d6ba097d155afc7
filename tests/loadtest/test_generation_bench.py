"""The generation bench over a tiny checkpoint: all systems answer in full, and names are the contract's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_model import write_tiny_model

from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from kernels.native import bf16_products_absence
from loadtest.bench_generation import main, measure
from loadtest.generation import peer_choice
from loadtest.generation.bounds import profile_step
from loadtest.generation.peer_choice import PeerChoice
from loadtest.generation.plan import CASES, FULL, GENERATE, QUICK, Findings, Plan
from loadtest.generation.systems import LlamaSetting
from loadtest.generation.workloads import Job, Trace
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
    copied={2: 2},
    classify={4: 2},
)
BEST = list(llama_cpp.SPECULATION)[-1]
GUESSED = [Job((1, 2), 1)]


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
        *(("lora8 c=2", other) for other in ("one adapter", "base")),
        ("base with adapters on c=2", "adapters off"),
        ("copied c=2", "drafts off"),
        ("copied, prompt known c=2", "drafts off"),
        ("drafted noise c=2", "drafts off"),
    }
    classified = {(ratio["case"], ratio["ours_over"]) for ratio in content["ratios"] if ratio["metric"] == "texts_s"}
    assert classified == {("classify 4x77", "one call per label"), ("classify 4x77", "choice grammar")}
    found = content["classify"]["classify 4x77"]
    assert found["same best label"] == "2 of 2" and found["largest difference in log-probability"] < 1e-3
    assert all(ratio["value"] > 0 for ratio in content["ratios"])
    assert "make bench-peers" in content["missing_peers"]["llama.cpp"]
    step = content["bounds"]["steps"]["2x40"]
    assert set(step) == {"bound", "step", "sampling", "rest"} and step["step"] > 0
    assert {row["case"] for row in content["rows"]} >= {"ttft cold", "ttft warm", "gaps"}
    # Tokens of a draft come at once; a gap of none would say nothing of the steps.
    assert all(row["value"] > 0.01 for row in content["rows"] if row["metric"] == "itl_p50_alone")


@pytest.mark.skipif(bf16_products_absence() is not None, reason="there are no native kernels for bfloat16 here")
def test_step_in_one_native_call_tells_its_parts(tmp_path: Path):
    model = write_tiny_model(tmp_path)
    decoder = Decoder(model, read_spec(model), dtype=torch.bfloat16, device="cpu")
    step = profile_step(decoder, width=2, context=40)
    parts = {"linear", "attention", "rope and kv write", "norm and residual", "activation", "sampling", "rest"}
    assert set(step) == {"step", *parts}
    assert step["step"] == pytest.approx(sum(step[part] for part in parts))
    assert min(step.values()) > 0


async def test_llama_takes_the_best_of_all_formats_then_of_the_other_settings(monkeypatch: pytest.MonkeyPatch):
    rates = {("Q8_0", 8, 2, "none"): 30.0, ("Q8_0", 4, 2, "none"): 40.0}
    tried = []

    async def rate(setting: LlamaSetting, jobs: object, clients: int) -> float:
        tried.append(setting)
        return rates.get(setting, 10.0)

    monkeypatch.setattr(peer_choice, "llama_rate", rate)
    monkeypatch.setattr(peer_choice, "usable_cores", lambda: 2)
    found = Findings()
    choice = PeerChoice(FULL, found, with_llama=True)
    assert await choice.llama("rag c=8", (), 8) == ("Q8_0", 4, 2, "none")
    assert {setting[0] for setting in tried} == set(llama_cpp.FORMATS) and len(set(tried)) == len(tried) == 5
    assert found.extra["llama.cpp settings"]["rag c=8"]["taken"] == "Q8_0, 4 slots, 2 threads"


async def test_llama_may_guess_where_our_engine_may_and_wider_cases_keep_its_best_way(monkeypatch: pytest.MonkeyPatch):
    tried = []

    async def rate(setting: LlamaSetting, jobs: object, clients: int) -> float:
        tried.append(setting)
        return 10.0 + (setting.weights == "Q8_0") + 5 * (setting.speculation == BEST)

    monkeypatch.setattr(peer_choice, "llama_rate", rate)
    monkeypatch.setattr(peer_choice, "usable_cores", lambda: 2)
    found = Findings()
    choice = PeerChoice(FULL, found, with_llama=True)
    assert await choice.llama("copied c=8", GUESSED, 8) == ("Q8_0", 8, 2, BEST)
    assert {setting.speculation for setting in tried} == set(llama_cpp.SPECULATION)
    assert len(set(tried)) == len(tried) == 4 + len(llama_cpp.SPECULATION)
    assert found.extra["llama.cpp settings"]["copied c=8"]["taken"] == f"Q8_0, 8 slots, 2 threads, {BEST}"
    assert await choice.llama("copied c=32", GUESSED, 32) == ("Q8_0", 32, 2, BEST)
    tried.clear()
    await PeerChoice(FULL, Findings(), with_llama=True).llama("free c=8", [Job((1, 2), 1, drafts=False)], 8)
    assert {setting.speculation for setting in tried} == {"none"}


def test_llama_server_is_told_how_to_guess():
    for name, flags in llama_cpp.SPECULATION.items():
        options = llama_cpp.server_options(slots=4, slot_tokens=100, threads=2, speculation=name)
        assert options[options.index("--ctx-size") + 1] == "400"
        assert ("--spec-type" in options) == (name != "none") and options[len(options) - len(flags) :] == list(flags)


def test_plan_leaves_out_the_cases_that_are_not_named():
    plan = FULL.only(["copied", "classify"])
    assert (plan.copied, plan.classify) == (FULL.copied, FULL.classify) and plan.rounds == FULL.rounds
    assert not (plan.free or plan.rag or plan.lora or plan.latency or plan.profiles)
    assert FULL.only(list(CASES)) == FULL
    with pytest.raises(ValueError, match=r"raq: no case of this bench; there is: free, rag, lora8"):
        FULL.only(["raq"])


def test_help_names_every_case(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name:9} " in text for name in CASES)


@pytest.mark.parametrize("rated", [{"bfloat16": 2.0, "float32": 3.0}, {"bfloat16": 3.0, "float32": 2.0}])
async def test_transformers_runs_in_the_format_that_is_faster_for_the_case(rated: dict[str, float]):
    class Peer:
        name = GENERATE

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
    async def rate(setting: LlamaSetting, jobs: object, clients: int) -> float:
        return {"BF16": 3.0}.get(setting[0], 2.0)

    monkeypatch.setattr(peer_choice, "llama_rate", rate)
    monkeypatch.setattr(peer_choice, "usable_cores", lambda: 2)
    choice = PeerChoice(FULL, Findings(), with_llama=True)
    await choice.llama("rag c=8", (), 8)
    assert await choice.llama("rag c=32", (), 32) == ("BF16", 32, 2, "none")
    assert await PeerChoice(QUICK, Findings(), with_llama=True).llama("rag c=2", (), 2) == ("Q4_0", 2, 2, "none")
    assert await PeerChoice(QUICK, Findings(), with_llama=False).llama("rag c=2", (), 2) is None


def test_plan_is_narrowed_to_clients_and_rounds():
    plan = FULL.narrowed([8], 1)
    assert (plan.free, plan.rag, plan.copied) == ({8: 16}, {8: 16}, {8: 16}) and (plan.rounds, plan.slow_rounds) == (
        1,
        1,
    )
    assert FULL.narrowed((), None) == FULL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "8", "5"], "no case has 5 clients; there are: 1, 4, 8, 16, 32"),
        (["--rounds", "0"], "0 rounds measure nothing; name 1 or more"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
