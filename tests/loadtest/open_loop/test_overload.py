"""The four figures of an overload test, from runs made up here."""

from __future__ import annotations

import os
import time

import pytest

from engine.errors import ConfigError
from loadtest.open_loop.arrivals import parse_shape
from loadtest.open_loop.overload import judge, main, spike_shape
from loadtest.open_loop.request_log import Request
from loadtest.open_loop.run import LoadRun
from loadtest.open_loop.server_memory import MemoryWatch, Sample, server_pid, tree_rss_bytes
from loadtest.open_loop.summary import part_figures

RUN = LoadRun("http://x", spike_shape(1.0, 10.0, 60.0), "even", 0, "", 1000, 100, 50, 64, started_unix=1000.0)
GIB = 2**30


def row(due_s, part, ending="complete", took_s=0.5):
    return Request(
        due_s, part, "search", ending, due_s, None, due_s + took_s, None, 503 if ending == "rejected" else 200
    )


def verdicts(rows, samples=()):
    parts = part_figures(rows, parse_shape(RUN.shape), RUN.slo)
    return {each.name: each for each in judge(parts, RUN, 1.0, samples)}


def spike(*, good=50, rejected=550, took_s=0.02):
    """The spike lasts from second 30 to 90."""
    rows = [row(30 + n * 60 / good, 1) for n in range(good)] if good else []
    return rows + [row(30 + n * 60 / rejected, 1, "rejected", took_s) for n in range(rejected)]


def after(*late_at):
    return [row(90 + n, 2, took_s=3.0 if n in late_at else 0.5) for n in range(30)]


def memory(growth):
    return [Sample(1030.0 + n, GIB + int(GIB * growth * (n >= 45))) for n in range(60)]


def test_shape_is_80_percent_of_the_knee_around_ten_times_of_it():
    parts = parse_shape(RUN.shape).parts
    assert [(part.start, part.duration_s) for part in parts] == [(0.8, 30.0), (10.0, 60.0), (0.8, 30.0)]


def test_a_server_that_protects_itself_keeps_all_four():
    found = verdicts(spike() + after(), memory(0.02))
    assert {name: each.holds for name, each in found.items()} == dict.fromkeys(
        ("surplus", "goodput", "memory", "recovery"), True
    )
    assert "550 of 600 rejected with Retry-After, in 20 ms at p50" in found["surplus"].words
    assert found["goodput"].value == pytest.approx(50 / 60)
    assert found["memory"].value == pytest.approx(0.02, abs=1e-6)


def test_slow_rejections_and_other_failures_do_not_hold():
    assert verdicts(spike(took_s=0.3) + after())["surplus"].holds is False
    found = verdicts([*spike(), row(40, 1, "failed"), *after()])["surplus"]
    assert found.holds is False and "1 requests ended otherwise" in found.words


def test_goodput_below_80_percent_of_the_knee_does_not_hold():
    assert verdicts(spike(good=47) + after())["goodput"].holds is False
    assert verdicts(spike(good=49) + after())["goodput"].holds is True


def test_memory_that_grows_does_not_hold_and_what_was_not_seen_is_not_judged():
    assert verdicts(spike() + after(), memory(0.2))["memory"].holds is False
    found = verdicts(spike() + after())["memory"]
    assert found.holds is None and "not measured" in found.words


def test_recovery_is_counted_from_the_end_of_the_spike_to_the_first_request_after_the_last_late_one():
    assert verdicts(spike() + after(0, 1, 2))["recovery"].value == 3.0
    assert verdicts(spike() + after(0, 1, 2))["recovery"].holds is True
    assert verdicts(spike() + after(0, 6))["recovery"].holds is False
    never = verdicts(spike() + after(*range(30)))["recovery"]
    assert never.holds is False and "30 of 30 late or refused" in never.words


def test_memory_of_a_process_is_that_of_its_children_too():
    assert tree_rss_bytes(os.getpid()) > 10 * 2**20
    # 2**22 is above the largest process number there can be.
    assert tree_rss_bytes(2**22 + 1) == 0


def test_memory_is_sampled_until_the_block_ends():
    readings = iter(range(1, 1000))
    with MemoryWatch(lambda: next(readings), every_s=0.001) as watch:
        deadline = time.monotonic() + 10
        while len(watch.samples) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert [each.rss_bytes for each in watch.samples[:3]] == [1, 2, 3]
    assert not watch._thread.is_alive()


def test_a_data_folder_without_a_server_is_named(tmp_path):
    with pytest.raises(ConfigError, match="names no process"):
        server_pid(tmp_path)
    (tmp_path / "server.json").write_text(f'{{"pid": {2**22 + 1}}}')
    with pytest.raises(ConfigError, match="has ended"):
        server_pid(tmp_path)


@pytest.mark.parametrize(
    "flags", [("--knee", "0"), ("--knee", "1", "--factor", "1"), ("--knee", "1", "--seconds", "0")]
)
def test_bad_numbers_are_refused_in_one_line(flags, capsys):
    assert main([*flags, "--url", "http://127.0.0.1:9"]) == 1
    assert "--knee must be above 0" in capsys.readouterr().err
