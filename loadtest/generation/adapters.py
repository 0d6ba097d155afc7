"""What adapters cost our engine: eight of them against one, and base requests beside loaded ones against none."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import save_file

from engine.generation.adapters.files import target_shapes
from engine.generation.adapters.inspection import TARGETS
from engine.generation.decoder.spec import read_spec
from engine.generation.protocol import GenerationEngine
from loadtest.bench_format import OURS, Ratio, Row, paired_ratio, spread
from loadtest.generation.plan import METRIC, UNIT, Findings
from loadtest.generation.systems import OurEngine
from loadtest.generation.workloads import Job, Trace, ideal_reuse, with_adapters

NUM_ADAPTERS = 8
RANK = 16


async def race(
    engine: GenerationEngine,
    ours: OurEngine,
    model: Path,
    trace: Trace,
    cases: dict[int, int],
    rounds: int,
    found: Findings,
    console: Console,
    prefix: str = "",
    warm_ups: int = 0,
) -> None:
    """For each number of clients: the trace over eight adapters and over one, then without, all loaded and none.

    `warm_ups`: rounds before those that count.
    """
    if not cases:
        return
    with tempfile.TemporaryDirectory() as folder:
        made = {f"lora {n}": write_adapter(Path(folder) / str(n), model, seed=n) for n in range(NUM_ADAPTERS)}
        names = list(made)
        for clients, count in cases.items():
            jobs = trace.jobs()[:count]
            many, one = with_adapters(jobs, names), [replace(job, adapter=names[0]) for job in jobs]
            console.print(f"{prefix}lora8 c={clients}: {rounds} rounds of {count} requests, eight adapters and one ...")
            rates: dict[str, list[float]] = {}
            for number in range(warm_ups + rounds):
                if number == warm_ups:
                    rates.clear()
                await _load(engine, made)
                # So that none is put into a slot while it counts.
                await ours.seconds([Job(jobs[0].prompt[:8], 1, name) for name in names], 1)
                for system, work in (("eight", many), ("one", one), ("on", jobs)):
                    rates.setdefault(system, []).append(_tokens(work) / await ours.seconds(work, clients))
                for name in names:
                    engine.unload_adapter(name)
                rates.setdefault("off", []).append(_tokens(jobs) / await ours.seconds(jobs, clients))
            _add(found, f"{prefix}lora8 c={clients}", "one adapter", rates["eight"], rates["one"])
            # The base's prompts share more of the prefix cache than those of eight adapters can.
            of_base = paired_ratio(rates["eight"], rates["off"], higher_is_better=True)
            found.ratios.append(Ratio(f"{prefix}lora8 c={clients}", METRIC, "base", *of_base))
            _add(found, f"{prefix}base with adapters on c={clients}", "adapters off", rates["on"], rates["off"])
            # Text computed with another adapter cannot be used again: a part of the difference that no kernel closes.
            found.extra.setdefault("ideal_reuse", {})[f"{prefix}lora8 c={clients}"] = {
                "eight adapters": round(ideal_reuse(many), 4),
                "one adapter": round(ideal_reuse(one), 4),
            }


def write_adapter(folder: Path, model: Path, *, seed: int, std: float = 0.01) -> Path:
    """Save a random adapter of every target of the checkpoint, as PEFT would, A and B of `std`. Returns `folder`."""
    spec = read_spec(model)
    # Not by torch: a second team of its threads in this process would slow the engine's steps several times.
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(spec.num_layers):
        for target in TARGETS:
            outputs, inputs = target_shapes(spec)[target]
            block = "self_attn" if target in "qkvo" else "mlp"
            for half, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                key = f"base_model.model.model.layers.{layer}.{block}.{target}_proj.lora_{half}.weight"
                tensors[key] = (std * random.standard_normal(shape)).astype(np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"},
        "target_modules": [f"{target}_proj" for target in TARGETS],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


async def _load(engine: GenerationEngine, made: dict[str, Path]) -> None:
    for name, path in made.items():
        await asyncio.to_thread(engine.load_adapter, name, path)


def _tokens(jobs: Sequence[Job]) -> int:
    return sum(job.num_output for job in jobs)


def _add(found: Findings, case: str, other: str, ours: list[float], theirs: list[float]) -> None:
    found.rows.append(Row(case, OURS, METRIC, UNIT, *spread(ours)))
    found.rows.append(Row(case, other, METRIC, UNIT, *spread(theirs)))
    found.ratios.append(Ratio(case, METRIC, other, *paired_ratio(ours, theirs, higher_is_better=True)))
