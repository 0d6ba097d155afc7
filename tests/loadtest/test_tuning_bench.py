"""The training bench: names are the contract's, and both sides train on the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_model import write_tiny_model

from engine.errors import SwitchyardError
from engine.tuning.training.packing import num_shared_tokens
from loadtest import bench_tuning
from loadtest.bench_format import OURS
from loadtest.bench_tuning import DEFAULTS, FORMATS, Plan
from loadtest.tuning import worker
from loadtest.tuning.workload import CASES, bench_examples

REPOSITORY = Path(__file__).parents[2]
PLAN = Plan(round_tokens=300, rounds=2, trial_tokens=60, batch_tokens=150)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


class FakeWorkers:
    """Answers as workers do: ours in a second, defaults in four, bfloat16 in three, float32 in two."""

    def __init__(self) -> None:
        self.seconds = {OURS: 1.0, FORMATS[0]: 2.0, FORMATS[1]: 3.0, DEFAULTS: 4.0}
        self.asked: list[tuple[str, str, int]] = []

    @contextmanager
    def __call__(self, model: Path, systems: Sequence[str]) -> Iterator[dict[str, Any]]:
        outer = self

        class Fake:
            def __init__(self, system: str) -> None:
                self.system = system

            def train(self, case: str, num_tokens: int, plan: Plan) -> dict[str, Any]:
                outer.asked.append((self.system, case, num_tokens))
                seconds = outer.seconds[self.system]
                return {"seconds": seconds, "tokens": num_tokens, "loss": 1.0, "peak_memory_bytes": 2_000_000_000}

        yield {system: Fake(system) for system in systems}


def test_bench_names_ratios_as_promised_and_races_the_faster_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    workers = FakeWorkers()
    monkeypatch.setattr(bench_tuning, "_workers", workers)
    bench_tuning.measure(tmp_path, PLAN, Console(quiet=True)).write_json(tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert {(ratio["case"], ratio["ours_over"]): ratio["value"] for ratio in content["ratios"]} == {
        ("classify", "peft trainer"): 2.0,
        ("classify", "peft trainer defaults"): 4.0,
        ("qa", "peft trainer"): 2.0,
        ("qa", "peft trainer defaults"): 4.0,
    }
    assert content["peer_formats"]["qa"] == {
        "taken": "peft trainer float32",
        "tried": {"peft trainer float32": "2.0 s", "peft trainer bfloat16": "3.0 s"},
    }
    memory = [row for row in content["rows"] if row["metric"] == "peak_memory"]
    assert len(memory) == 6 and all(row["value"] == 2.0 and row["unit"] == "GB" for row in memory)
    rounds = [system for system, case, tokens in workers.asked if case == "qa" and tokens == 300]
    assert rounds == [OURS, FORMATS[0], DEFAULTS, OURS, FORMATS[0]]


def test_quick_run_leaves_out_a_format_that_the_processor_emulates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    plan = replace(PLAN, tries_slow_formats=False)
    for dtype, tried in ((torch.float32, []), (torch.bfloat16, [*FORMATS])):
        workers = FakeWorkers()
        monkeypatch.setattr(bench_tuning, "_workers", workers)
        monkeypatch.setattr(bench_tuning, "training_dtype", lambda device, found=dtype: found)
        bench_tuning.measure(tmp_path, plan, Console(quiet=True))
        # The trials come before the warm-up of ours.
        firsts = [system for system, case, _ in workers.asked if case == "qa"]
        assert firsts[: firsts.index(OURS)] == tried


@pytest.mark.parametrize("case", CASES)
def test_examples_have_the_lengths_of_the_set_and_begin_alike(case: str):
    examples = bench_examples(case, 2000, 400)
    assert examples == bench_examples(case, 2000, 400)
    assert 1500 < sum(len(example.tokens) for example in examples) < 2500
    assert num_shared_tokens(examples) >= 21
    assert all(0 <= token < 400 for example in examples for token in example.tokens)
    assert len(bench_examples(case, 1, 400)) == 1


def test_both_sides_start_from_the_same_loss(model: Path):
    # The rate is so low that the mean loss of the epoch is that of the untrained model.
    examples = bench_examples("classify", 300, 300)
    losses = {}
    with warnings.catch_warnings(action="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.tuning.training.model.training_dtype", lambda device: torch.float32)
        patch.setattr(worker, "SETTINGS", worker.TrainingSettings(epochs=1, learning_rate=1e-9, rank=4))
        for system in (OURS, FORMATS[0], DEFAULTS):
            # One step of all examples: a mean over steps would weigh them differently.
            if system == OURS:
                seconds, losses[system] = worker.run_ours(model, examples, 10_000)
            else:
                seconds, losses[system] = worker.run_trainer(model, examples, 10_000, system=system)
            assert seconds > 0
    assert losses[OURS] == pytest.approx(losses[FORMATS[0]], rel=1e-4)
    assert losses[DEFAULTS] > 0


def test_worker_trains_in_its_own_process_and_tells_its_memory(model: Path):
    command = [sys.executable, "-m", "loadtest.tuning.worker", OURS, str(model), "1"]
    request = {"case": "classify", "num_tokens": 200, "batch_tokens": 100}
    done = subprocess.run(
        command,
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ,
        timeout=200,
    )
    ready, reply = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"ready": True}
    assert reply["seconds"] > 0 and reply["peak_memory_bytes"] > 50_000_000, done.stderr


def test_failing_worker_is_named():
    process = subprocess.Popen(
        [sys.executable, "-c", 'print(\'{"error": "no room"}\')'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    failing = bench_tuning._Worker("peft trainer", process)
    with pytest.raises(SwitchyardError, match="peft trainer cannot train: no room"):
        failing.reply()
    with pytest.raises(SwitchyardError, match="peft trainer cannot train: the process ended"):
        failing.reply()
    process.communicate()
