"""`switchyard bench kernels`: every operation of kernels/ is right first, then how fast, against torch and others.

On a GPU the Triton kernels are timed by the device's events; without one, Triton's interpreter checks them on small
shapes, and what is timed are the CPU's native kernels. One wrong result anywhere, and no time is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from engine.config import usable_cores
from engine.errors import SwitchyardError
from kernels.native import bf16_products_absence
from loadtest.bench_format import OURS, Ratio, Report, Row, paired_ratio, spread
from loadtest.generation.plan import Findings
from loadtest.gpu.operations import check_operations
from loadtest.gpu.record import Budget, Record
from loadtest.kernels.case import Case
from loadtest.kernels.clock import Ceiling, Clock, CpuClock, GpuClock, measure_ceiling
from loadtest.kernels.decoder_cases import LARGE, SMALL, decoder_cases
from loadtest.kernels.interpreted import interpreted_parity
from loadtest.kernels.search_cases import search_cases

METRIC = "latency_us"
_ROUNDS, _QUICK_ROUNDS = 25, 7
_ROWS_CPU, _ROWS_GPU = 100_000, 1_000_000
_NO_GPU = "not measured: torch sees no GPU; Triton's interpreter checked the kernels, which says nothing of speed"

Cases = Callable[[], Iterator[Case]]
Checks = Callable[[str], tuple[dict[str, str], dict[str, str]]]


def run(*, quick: bool, json_path: Path | None) -> None:
    """Run the bench, print it, and write `json_path` if there is one. Raises: SwitchyardError where parity fails."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(usable_cores())
    is_half = device == "cuda" or bf16_products_absence() is None
    dtype = torch.bfloat16 if is_half else torch.float32

    def cases() -> Iterator[Case]:
        yield from decoder_cases(device, dtype, LARGE if device == "cuda" else SMALL, is_short=quick)
        yield from search_cases(device, _ROWS_GPU if device == "cuda" else _ROWS_CPU, is_short=quick)

    report = measure(cases, device=device, dtype=dtype, num_rounds=_QUICK_ROUNDS if quick else _ROUNDS)
    report.print_table(Console())
    if json_path is not None:
        report.write_json(json_path)
    wrong = report.extra["wrong"]
    if wrong:
        name, words = next(iter(wrong.items()))
        raise SwitchyardError(
            f"bench kernels: {len(wrong)} results are wrong, so nothing was timed; the first is {name}: {words}. "
            "Its test is in tests/kernels."
        )


def measure(cases: Cases, *, device: str, dtype: torch.dtype, num_rounds: int, check: Checks | None = None) -> Report:
    """Parity of every operation and case; then, where all are right, times of each case's systems in turn.

    `cases` is called twice, so that not all inputs are in memory at once. `check` is by default `check_device`.
    """
    parity, wrong = (check or check_device)(device)
    for case in cases():
        fault = case.fault()
        parity[case.name] = "within twice the error of torch in the same dtype" if fault is None else f"WRONG: {fault}"
        if fault is not None:
            wrong[case.name] = fault
    found = Findings()
    found.extra |= {"dtype": str(dtype).removeprefix("torch."), "parity": parity, "wrong": wrong, "missing": {}}
    found.extra["gpu"] = torch.cuda.get_device_name() if device == "cuda" else _NO_GPU
    if not wrong:
        clock: Clock = GpuClock() if device == "cuda" else CpuClock()
        ceiling = measure_ceiling(clock, device, dtype)
        found.extra["ceiling"] = {
            "copy_gb_s": round(ceiling.bytes_s / 1e9, 1),
            "product_tflop_s": round(ceiling.flops_s / 1e12, 3),
        }
        for case in cases():
            _time(case, clock, ceiling, num_rounds, found)
    found.extra["workload"] = (
        f"{num_rounds} rounds, the systems in turn; share of ceiling: the least time that the measured rates of copies "
        "and products allow, over ours; on a GPU after its caches were overwritten, on a CPU with warm ones"
    )
    return Report("kernels", found.rows, found.ratios, found.extra)


def check_device(device: str) -> tuple[dict[str, str], dict[str, str]]:
    """Words on each operation of the device, or of the interpreter where it is a CPU, and on those that are wrong."""
    if device == "cpu":
        return interpreted_parity()
    record = Record("kernels", None, Budget(900), Console(quiet=True))
    check_operations(record, device)
    return record.found.extra.get("parity", {}), dict(record.failed)


def _time(case: Case, clock: Clock, ceiling: Ceiling, num_rounds: int, found: Findings) -> None:
    timers = {name: clock.timer(work) for name, work in case.systems.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(num_rounds):
        for name, timer in timers.items():
            seconds[name].append(timer())
    for name, values in seconds.items():
        found.rows.append(Row(case.name, name, METRIC, "us", *spread([1e6 * value for value in values])))
        if name != OURS:
            ratio = paired_ratio(seconds[OURS], values, higher_is_better=False)
            found.ratios.append(Ratio(case.name, METRIC, name, *ratio))
    shares = [100 * ceiling.least_s(case.num_bytes, case.flops) / value for value in seconds[OURS]]
    rates: dict[str, tuple[str, list[float]]] = {
        "share_of_ceiling": ("%", shares),
        "bandwidth": ("GB/s", [case.num_bytes / value / 1e9 for value in seconds[OURS]]),
        "products": ("TFLOP/s", [case.flops / value / 1e12 for value in seconds[OURS]]),
    }
    for metric, (unit, values) in rates.items():
        found.rows.append(Row(case.name, OURS, metric, unit, *spread(values)))
    found.extra["missing"] |= case.missing
