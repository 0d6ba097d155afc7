"""The bench of kernels: right before fast, named as promised, and the same script with and without a GPU."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from engine.errors import SwitchyardError
from kernels.triton_absence import triton_absence
from loadtest import bench_kernels
from loadtest.bench_format import OURS
from loadtest.gpu import operations
from loadtest.gpu.record import Budget, Record
from loadtest.kernels.case import Case, Results
from loadtest.kernels.clock import Ceiling, CpuClock
from loadtest.kernels.decoder_cases import NOT_SHARED, TINY, decoder_cases
from loadtest.kernels.search_cases import COPIED, search_cases

needs_triton = pytest.mark.skipif(triton_absence("cpu") is not None, reason=f"no Triton: {triton_absence('cpu')}")


def tiny_cases():
    yield from decoder_cases("cpu", torch.float32, TINY, is_short=True)
    yield from search_cases("cpu", 2000, is_short=True)


def case(result: float) -> Case:
    def results() -> Results:
        return Results(torch.full((3,), result), torch.ones(3), torch.ones(3))

    return Case("ones", "3", {OURS: lambda: None, "torch": lambda: None}, results, 12, 3)


def nothing_else(device):
    return {}, {}


@pytest.fixture(scope="module")
def report():
    return bench_kernels.measure(
        tiny_cases, device="cpu", dtype=torch.float32, num_rounds=1, check=nothing_else
    ).content()


def test_every_operation_is_right_and_raced_against_torch(report):
    assert not report["wrong"]
    raced = {ratio["case"].split()[0] for ratio in report["ratios"] if ratio["ours_over"] == "torch"}
    assert raced == {
        "rms_norm",
        "silu_mul",
        "kv_write",
        "linear",
        "lora_add",
        "paged_attention",
        "chunk_attention",
        "sampling",
        "penalise",
        "accept_drafts",
        "masked_topk",
    }
    assert all(ratio["value"] > 0 and ratio["metric"] == "latency_us" for ratio in report["ratios"])
    assert {row["case"] for row in report["rows"]} == {each.name for each in tiny_cases()} == set(report["parity"])


def test_shares_of_the_ceiling_are_those_of_the_measured_rates(report):
    ceiling = report["ceiling"]
    assert ceiling["copy_gb_s"] > 0 and ceiling["product_tflop_s"] > 0
    assert Ceiling(10.0, 100.0).least_s(20, 50) == 2.0 and Ceiling(10.0, 100.0).least_s(1, 500) == 5.0
    shares = [row["value"] for row in report["rows"] if row["metric"] == "share_of_ceiling"]
    assert len(shares) == len(report["parity"]) and min(shares) > 0


def test_what_takes_no_part_and_what_is_not_measured_is_said(report):
    assert report["missing"].keys() == {"flash-attention", "faiss"}
    assert report["gpu"].startswith("not measured")


def test_search_with_a_filter_is_raced_against_a_copy_of_the_allowed_rows(report):
    filtered = {ratio["case"] for ratio in report["ratios"] if ratio["ours_over"] == COPIED}
    assert filtered and all("allowed" in name for name in filtered)


@pytest.mark.parametrize("result", [1.01, float("nan")])
def test_one_wrong_result_and_nothing_is_timed(result, tmp_path, monkeypatch):
    cases = [case(1.0), case(result)]
    report = bench_kernels.measure(
        lambda: iter(cases), device="cpu", dtype=torch.float32, num_rounds=1, check=nothing_else
    )
    assert report.extra["parity"]["ones 3"].startswith("WRONG: error")
    assert not report.rows and not report.ratios and "ceiling" not in report.extra
    monkeypatch.setattr(bench_kernels, "measure", lambda *_, **__: report)
    with pytest.raises(SwitchyardError, match="1 results are wrong, so nothing was timed; the first is ones 3: error"):
        bench_kernels.run(quick=True, json_path=tmp_path / "kernels.json")
    assert (tmp_path / "kernels.json").is_file()


def test_kernel_that_is_wrong_on_the_device_alone_stops_the_times_too():
    report = bench_kernels.measure(
        lambda: iter([case(1.0)]),
        device="cpu",
        dtype=torch.float32,
        num_rounds=1,
        check=lambda device: ({"operation x": "WRONG: y"}, {"operation x": "y"}),
    )
    assert report.extra["wrong"] == {"operation x": "y"} and not report.rows


@needs_triton
def test_interpreter_checks_every_operation_that_has_a_triton_kernel():
    record = Record("interpreted", None, Budget(600), Console(quiet=True))
    operations.check_operations(record, operations.INTERPRETER)
    assert not record.failed
    assert record.found.extra["parity"].keys() == {
        f"operation {name}"
        for name in (*operations.INTERPRETED, "masked_topk", "sampling", "penalise", "accept_drafts")
    }


@needs_triton
def test_interpreter_names_a_kernel_that_is_off(monkeypatch):
    def operation(device: str, dtype: torch.dtype, is_exact: bool) -> torch.Tensor:
        return torch.ones(3) * (1.01 if device == operations.INTERPRETER else 1.0)

    monkeypatch.setattr(operations, "INTERPRETED", {"ones": operation})
    monkeypatch.setattr(operations, "_check_masked", lambda record, device: None)
    monkeypatch.setattr(operations, "check_choosing", lambda *_, **__: None)
    record = Record("interpreted", None, Budget(600), Console(quiet=True))
    operations.check_operations(record, operations.INTERPRETER)
    assert "operation ones" in record.failed


def test_clock_repeats_short_calls_and_counts_one():
    calls = []
    timer = CpuClock().timer(lambda: calls.append(1))
    before = len(calls)
    assert 0 < timer() < 1e-3
    assert len(calls) - before > 100


def test_blocks_that_are_shared_are_raced_against_reading_them_for_each_request():
    cases = decoder_cases("cpu", torch.float32, TINY, is_short=False)
    (shared,) = (each for each in cases if "shared" in each.name)
    assert shared.systems.keys() == {OURS, "torch", NOT_SHARED} and shared.fault() is None
    (alone,) = (
        each for each in decoder_cases("cpu", torch.float32, TINY, is_short=False) if "decode 32x512" in each.name
    )
    assert shared.num_bytes < alone.num_bytes  # shared blocks count once
