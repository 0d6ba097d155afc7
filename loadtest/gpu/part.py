"""One part of the GPU bench in a process of its own: a device that fails in it is new again for the next one.

python -m loadtest.gpu.part PART FILE BUDGET_S DEVICE PLAN FOLDER SHAPE...
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from loadtest.generation.random_checkpoint import write_checkpoint
from loadtest.gpu.record import Budget, Record
from loadtest.gpu.reference import free_memory


def main(argv: list[str]) -> int:
    """Run it; 1 when something differs from its reference or fails."""
    part, file, budget_s, device, plan, work, *shapes = argv
    budget, console = Budget(float(budget_s)), Console(highlight=False, width=160)
    record = Record(f"gpu_{part}", Path(file), budget, console)
    record.found.extra["workload"] = f"random weights, seed 0, on {device}; {plan} plan"
    run: Callable[..., None] = {"parity": run_parity, "speed": run_speed, "encoder": run_encoder}[part]
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
    if device == "cuda":
        record.found.extra["device"] = device_rates()
    decodes = {"dry": steps.DECODES[:1], "quick": steps.QUICK_DECODES, "full": steps.DECODES}[plan]
    record.attempt("steps", lambda: steps.profile_steps(record, shape, model, device, decodes=decodes))
    # The peer runs in another process, for which memory that torch keeps here is taken.
    free_memory()
    cases = {"dry": speed.DRY, "quick": speed.QUICK, "full": speed.FULL}[plan]
    speed.race_shape(record, shape, model, device, cases, budget)


def run_encoder(record: Record, shapes: list[str], device: str, plan: str, work: Path, budget: Budget) -> None:
    """The encoder against sentence-transformers."""
    from loadtest.gpu import encoders

    encoders.race_encoders(record, device, work, is_dry=plan == "dry", budget=budget)


def device_rates() -> dict[str, float]:
    """What the device can do at best: bytes moved in a large copy (read and written) and operations of a product."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    copy_s = _device_s(lambda: target.copy_(source))
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_s = _device_s(lambda: x @ y)
    return {
        "copy_gb_s": round(2 * source.numel() * 4 / copy_s / 1e9),
        "bf16_tflop_s": round(2 * 8192**3 / product_s / 1e12),
    }


def _device_s(work: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    new_event: Any = torch.cuda.Event
    start, end = (new_event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / repeats


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
