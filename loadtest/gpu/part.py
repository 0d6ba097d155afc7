"""One part of the GPU bench in a process of its own: a device that fails in it is new again for the next one.

python -m loadtest.gpu.part PART FILE BUDGET_S DEVICE PLAN FOLDER SHAPE...
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from loadtest.generation.bounds import Machine
from loadtest.generation.random_checkpoint import write_checkpoint
from loadtest.gpu.record import Budget, Record
from loadtest.gpu.reference import free_memory
from loadtest.kernels.clock import CpuClock, GpuClock, measure_ceiling


def main(argv: list[str]) -> int:
    """Run it; 1 when something differs from its reference or fails."""
    part, file, budget_s, device, plan, work, *shapes = argv
    budget, console = Budget(float(budget_s)), Console(highlight=False, width=160)
    record = Record(f"gpu_{part}", Path(file), budget, console)
    record.found.extra["workload"] = f"random weights, seed 0, on {device}; {plan} plan"
    run: Callable[..., None] = {
        "parity": run_parity,
        "search": run_search,
        "speed": run_speed,
        "encoder": run_encoder,
    }[part]
    record.attempt(part, lambda: run(record, shapes, device, plan, Path(work), budget))
    return 1 if record.failed else 0


def run_parity(record: Record, shapes: list[str], device: str, plan: str, work: Path, budget: Budget) -> None:
    """Operations, then each shape's tokens, then adapters, drafts and grammars of the first."""
    # Each imports what only it needs, so that a package that is absent fails no other part.
    from loadtest.gpu import operations, parity

    record.attempt("operations", lambda: operations.check_operations(record, device))
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            tokens = partial(parity.check_tokens, record, shape, device, Path(folder))
            record.attempt(f"tokens {shape}", tokens, estimate_s=5)
        free_memory()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        record.attempt(
            "features",
            lambda: parity.check_features(record, shapes[0], device, Path(folder)),
            estimate_s=5,
        )


def run_speed(record: Record, shapes: list[str], device: str, plan: str, work: Path, budget: Budget) -> None:
    """One checkpoint: where a step's time goes, then the race."""
    from loadtest.gpu import speed, steps

    (shape,) = shapes
    model = write_checkpoint(work / "model", shape, device=device)
    machine = device_rates(device)
    record.found.extra["device"] = {
        "copy_gb_s": round(machine.read_bytes_s / 1e9),
        "bf16_tflop_s": round(machine.flops_s / 1e12, 3),
    }
    free_memory()
    chosen = {"dry": steps.DRY, "quick": steps.QUICK, "full": steps.FULL}[plan]
    record.attempt("steps", lambda: steps.profile_steps(record, shape, model, device, machine, chosen))
    # The peer runs in another process, for which memory that torch keeps here is taken.
    free_memory()
    cases = {"dry": speed.DRY, "quick": speed.QUICK, "full": speed.FULL}[plan]
    speed.race_shape(record, shape, model, device, cases, budget)


def run_search(record: Record, shapes: list[str], device: str, plan: str, work: Path, budget: Budget) -> None:
    """Exact search of a million rows."""
    from loadtest.gpu import search

    search.race_search(record, device, is_dry=plan == "dry")


def run_encoder(record: Record, shapes: list[str], device: str, plan: str, work: Path, budget: Budget) -> None:
    """The encoder against sentence-transformers."""
    from loadtest.gpu import encoders

    encoders.race_encoders(record, device, work, is_dry=plan == "dry", budget=budget)


def device_rates(device: str) -> Machine:
    """What the device can do at best: bytes a second of a large copy, and operations of a bfloat16 product."""
    ceiling = measure_ceiling(GpuClock() if device == "cuda" else CpuClock(), device, torch.bfloat16)
    return Machine(ceiling.bytes_s, ceiling.flops_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
