"""`switchyard bench tuning`: tokens trained on per second, against transformers' Trainer over PEFT.

Both train the same adapter (LoRA on all linear layers) of the same examples for one epoch, in turn, with the loss on
completions alone; only the examples' own tokens count, not what pads them. The Trainer groups by length, takes as
many tokens a step as ours, and runs in the number format that a trial finds faster; its defaults are reported too.
The examples of a case begin with one template, as those of every task do: ours computes that once in a step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from engine.config import GeneratorSettings, usable_cores
from engine.errors import SwitchyardError
from engine.models import resolve_model
from engine.tuning.training.model import training_dtype
from loadtest.bench_format import OURS, Ratio, Report, Row, paired_ratio, spread
from loadtest.environment import REPOSITORY
from loadtest.tuning.workload import CASES

PEER = "peft trainer"
FORMATS = (f"{PEER} float32", f"{PEER} bfloat16")
DEFAULTS = f"{PEER} defaults"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: tokens of a round, rounds, and tokens of the trial of number formats and of a warm-up.

    A slow format is one that the processor has no instructions for; a trial of it takes a minute.
    """

    round_tokens: int
    rounds: int
    trial_tokens: int = 250
    batch_tokens: int = 1024
    tries_slow_formats: bool = True


FULL = Plan(round_tokens=6000, rounds=3)
QUICK = Plan(round_tokens=2000, rounds=1, tries_slow_formats=False)


def run(*, quick: bool, json_path: Path | None) -> None:
    """Run the bench, print it, and write `json_path` if there is one."""
    console = Console(stderr=True, highlight=False)
    model = resolve_model(GeneratorSettings().model, kind="generator", show_progress=True)
    report = measure(model.path, QUICK if quick else FULL, console)
    report.print_table(Console())
    if json_path is not None:
        report.write_json(json_path)


def measure(model: Path, plan: Plan, console: Console) -> Report:
    """Every case on the checkpoint in folder `model`. Raises: SwitchyardError when a system fails."""
    rows: list[Row] = []
    ratios: list[Ratio] = []
    formats: dict[str, Any] = {}
    for case in CASES:
        best, tried = _faster_format(model, case, plan, console)
        formats[case] = {"taken": best, "tried": tried}
        systems = (OURS, best, DEFAULTS)
        rates: dict[str, list[float]] = {system: [] for system in systems}
        peaks: dict[str, float] = {}
        with _workers(model, systems) as workers:
            for worker in workers.values():
                worker.train(case, plan.trial_tokens, plan)
            for number in range(plan.rounds):
                for system, worker in workers.items():
                    # The defaults are told, not raced: one round of them is enough.
                    if system != DEFAULTS or number == 0:
                        reply = worker.train(case, plan.round_tokens, plan)
                        rates[system].append(reply["tokens"] / reply["seconds"])
                        peaks[system] = reply["peak_memory_bytes"] / 1e9
                        console.print(f"{case}, {system}: {rates[system][-1]:.0f} tokens/s, loss {reply['loss']:.2f}")
        for system in systems:
            rows.append(Row(case, system, "train_tok_s", "tokens/s", *spread(rates[system])))
            rows.append(Row(case, system, "peak_memory", "GB", *spread([peaks[system]])))
        ratios.append(Ratio(case, "train_tok_s", PEER, *paired_ratio(rates[OURS], rates[best], higher_is_better=True)))
        first = paired_ratio(rates[OURS][:1], rates[DEFAULTS], higher_is_better=True)
        ratios.append(Ratio(case, "train_tok_s", DEFAULTS, *first))
    workload = (
        f"{usable_cores()} threads; {plan.rounds} rounds of {plan.round_tokens} tokens, steps of {plan.batch_tokens}; "
        "LoRA of rank 16 on all linear layers; random tokens in the lengths of banking77 and SQuAD"
    )
    return Report("tuning", rows, ratios, {"model": model.name, "peer_formats": formats, "workload": workload})


def _faster_format(model: Path, case: str, plan: Plan, console: Console) -> tuple[str, dict[str, str]]:
    """The Trainer's faster number format on a few tokens of the case, and what each took."""
    if not plan.tries_slow_formats and training_dtype("cpu") == torch.float32:
        return FORMATS[0], {FORMATS[1]: "not tried: the processor has no instructions for it"}
    seconds: dict[str, float] = {}
    for system in FORMATS:
        with _workers(model, (system,)) as workers:
            seconds[system] = workers[system].train(case, plan.trial_tokens, plan)["seconds"]
        console.print(f"{case}, {system}: {seconds[system]:.1f} s in a trial")
    return min(seconds, key=lambda system: seconds[system]), {name: f"{value:.1f} s" for name, value in seconds.items()}


class _Worker:
    def __init__(self, system: str, process: subprocess.Popen[str]) -> None:
        self._system, self._process = system, process

    def train(self, case: str, num_tokens: int, plan: Plan) -> dict[str, Any]:
        """One epoch over examples of about `num_tokens` tokens."""
        assert self._process.stdin is not None
        request = {"case": case, "num_tokens": num_tokens, "batch_tokens": plan.batch_tokens}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """The next line that the worker says. Raises: SwitchyardError when it says an error or nothing."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            raise SwitchyardError(f"{self._system} cannot train: {reply['error']}. The lines before this say why.")
        return reply


@contextmanager
def _workers(model: Path, systems: Sequence[str]) -> Iterator[dict[str, _Worker]]:
    """A process for each system, started one after another and ended at the end."""
    processes: list[subprocess.Popen[str]] = []
    workers: dict[str, _Worker] = {}
    try:
        for system in systems:
            command = [sys.executable, "-m", "loadtest.tuning.worker", system, str(model), str(usable_cores())]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
            )
            processes.append(process)
            workers[system] = _Worker(system, process)
            workers[system].reply()
        yield workers
    finally:
        for process in processes:
            process.kill()
            process.communicate()
