"""The device time of one step: of its parts, of its kernels, and how often the device was waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from engine.generation.attention import base, gpu
from engine.generation.decoder import matrix as matrix_module
from engine.generation.decoder import model as decoder_module

# Of a step; where each part's function is looked up.
_PARTS: dict[str, tuple[Any, str]] = {
    "linear": (matrix_module, "linear"),
    "attention": (gpu, "paged_attention"),
    "rope and kv write": (base, "kv_write"),
    "norm and residual": (decoder_module, "rms_norm"),
    "activation": (decoder_module, "silu_mul"),
}
NUM_KERNELS = 15

Mark = Any  # a CUDA event, or seconds on a CPU


def measured(run: Callable[[], None], num_runs: int, num_profiled: int, *, is_cuda: bool) -> dict[str, Any]:
    """Milliseconds of a step alone, of its parts, and of its kernels. A part's time includes gaps between kernels."""
    for _ in range(min(3, num_runs)):
        run()
    times = []
    for _ in range(num_runs):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    parts = _part_ms(run, is_cuda)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiled:
        for _ in range(num_profiled):
            run()
    events: list[Any] = list(profiled.key_averages())
    where = "CUDA" if is_cuda else "CPU"
    kernels = [
        (e.key, _self_us(e, is_cuda) / 1000 / num_profiled, e.count)
        for e in events
        if str(e.device_type).endswith(where)
    ]
    kernels.sort(key=lambda kernel: -kernel[1])
    waits = sum(event.count for event in events if "Synchronize" in event.key) / num_profiled
    return {
        "step_ms": round(median(times), 3),
        "kernel_ms": round(sum(ms for _, ms, _ in kernels), 3),
        "num_kernels": round(sum(count for _, _, count in kernels) / num_profiled),
        "num_waits": round(waits),
        "part_ms": {name: round(ms, 3) for name, ms in parts.items()},
        "kernels": [
            {"name": name[:90], "ms": round(ms, 4), "count": round(count / num_profiled)}
            for name, ms, count in kernels[:NUM_KERNELS]
        ],
    }


def summary(found: dict[str, Any]) -> str:
    """One line."""
    share = found["kernel_ms"] / found["step_ms"]
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in found["part_ms"].items() if ms)
    bound = "launch-bound" if share < 0.8 else "device-bound"
    return (
        f"{found['step_ms']:.2f} ms, kernels {found['kernel_ms']:.2f} ms in {found['num_kernels']} launches "
        f"({100 * share:.0f} %: {bound}), {found['num_waits']} waits; {parts}; "
        f"{100 * found['bound_ms'] / found['step_ms']:.0f} % of what the device could"
    )


def _self_us(event: Any, is_cuda: bool) -> float:
    return float(event.self_device_time_total if is_cuda else event.self_cpu_time_total)


def _part_ms(run: Callable[[], None], is_cuda: bool) -> dict[str, float]:
    """By part, in one step, as the device's clock sees it."""
    with _marked(is_cuda) as marks:
        run()
    if is_cuda:
        torch.cuda.synchronize()
        return {name: sum(start.elapsed_time(end) for start, end in pairs) for name, pairs in marks.items()}
    return {name: sum(1000 * (end - start) for start, end in pairs) for name, pairs in marks.items()}


@contextmanager
def _marked(is_cuda: bool) -> Iterator[dict[str, list[tuple[Mark, Mark]]]]:
    """While open, every call of a part leaves its beginning and end."""
    marks: dict[str, list[tuple[Mark, Mark]]] = {name: [] for name in _PARTS}
    originals = {name: getattr(module, function) for name, (module, function) in _PARTS.items()}

    new_event: Any = torch.cuda.Event

    def mark() -> Mark:
        if not is_cuda:
            return time.perf_counter()
        event = new_event(enable_timing=True)
        event.record()
        return event

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = mark()
            result = originals[name](*args, **kwargs)
            marks[name].append((start, mark()))
            return result

        return call

    try:
        for name, (module, function) in _PARTS.items():
            setattr(module, function, wrapped(name))
        yield marks
    finally:
        for name, (module, function) in _PARTS.items():
            setattr(module, function, originals[name])
