from __future__ import annotations

import io

from rich.console import Console

from loadtest.measures import Served, Slo
from loadtest.recorder import Recorder


def summary_of(recorder: Recorder) -> str:
    console = Console(file=io.StringIO(), width=200)
    recorder.print_summary(console, Slo(ttft_s=0.5, tpot_s=0.1), duration_s=2.0)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_summary_keeps_fractions_of_a_millisecond() -> None:
    recorder = Recorder()
    for elapsed_ms in (1.2, 1.4, 1.6):
        recorder.add("ITL", "rag", elapsed_ms, None)
    assert [cell.strip() for cell in summary_of(recorder).split("ITL")[1].splitlines()[0].split("│")][1:5] == [
        "rag",
        "3",
        "1.3",
        "1.4",
    ]


def test_summary_counts_goodput_over_the_whole_run() -> None:
    recorder = Recorder(served=[Served(0.4, 0.05), Served(0.6, 0.05)])
    assert "goodput: 0.50 answers/s with TTFT <= 500 ms and TPOT <= 100 ms" in summary_of(recorder)
    assert "(1 of 2 complete streams in 2.0 s)" in summary_of(recorder)


def test_failures_and_rejections_are_counted_apart_and_never_timed() -> None:
    recorder = Recorder()
    recorder.add("REJECTED", "429 stream", 3.0, None)
    recorder.add("REJECTED", "429 stream", 3.0, None)
    recorder.add("E2E", "rag", 900.0, "stream [ended]")
    summary = summary_of(recorder)
    assert "rejected: 2 x 429 stream" in summary
    assert "failed: 1 x E2E rag: stream [ended]" in summary
    assert not recorder.samples_ms
