"""The figures of an overload test, from runs made up here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest
from chat_stub import running_stub

from engine.errors import ConfigError
from loadtest.open_loop.arrivals import parse_shape
from loadtest.open_loop.overload import main
from loadtest.open_loop.protection import judge, spike_shape
from loadtest.open_loop.request_log import Request
from loadtest.open_loop.run import LoadRun
from loadtest.open_loop.server_processes import (
    Sample,
    ServerWatch,
    Usage,
    sample_tree,
    server_pid,
    used_between,
)
from loadtest.open_loop.summary import part_figures

RUN = LoadRun("http://x", spike_shape(1.0, 10.0, 60.0), "even", 0, "", 1000, 100, 50, 64, started_unix=1000.0)
GIB = 2**30


def row(due_s, part, ending="complete", took_s=0.5, kind="chat", lag_s=0.001):
    status = 503 if ending == "rejected" else 200
    return Request(due_s, part, kind, ending, due_s + lag_s, None, due_s + took_s, None, status, tokens=2)


def verdicts(rows, samples=(), sender_cpu_s=6.0):
    parts = part_figures(rows, parse_shape(RUN.shape), RUN.slo)
    return {each.name: each for each in judge(parts, RUN, 1.0, samples, sender_cpu_s)}


def before(late=0):
    return [row(n, 0, took_s=3.0 if n < late else 0.5) for n in range(60)]


def spike(*, good=50, rejected=550, took_s=0.02, searches=0):
    """The spike lasts from second 60 to 120; of the good ones, some are searches."""
    kinds = ["search"] * searches + ["chat"] * (good - searches)
    rows = [row(60 + n * 60 / good, 1, kind=kind) for n, kind in enumerate(kinds)]
    return rows + [row(60 + n * 60 / rejected, 1, "rejected", took_s) for n in range(rejected)]


def after(*late_at):
    return [row(120 + n, 2, took_s=3.0 if n in late_at else 0.5) for n in range(60)]


def memory(growth):
    sizes = [GIB + int(GIB * growth * (n >= 45)) for n in range(60)]
    return [Sample(1060.0 + n, {1: Usage("Generator", size, 0.0)}) for n, size in enumerate(sizes)]


def test_shape_is_80_percent_of_the_knee_around_ten_times_of_it():
    parts = parse_shape(RUN.shape).parts
    assert [(part.start, part.duration_s) for part in parts] == [(0.8, 60.0), (10.0, 60.0), (0.8, 60.0)]


def test_a_server_that_protects_itself_keeps_all_figures():
    found = verdicts(before() + spike() + after(), memory(0.02))
    names = ("surplus", "goodput", "answers", "memory", "recovery", "sender")
    assert {name: each.holds for name, each in found.items()} == dict.fromkeys(names, True)
    assert "550 of 600 rejected with Retry-After, in 20 ms at p50" in found["surplus"].words
    assert found["goodput"].value == pytest.approx(50 / 60)
    assert found["memory"].value == pytest.approx(0.02, abs=1e-6)


def test_slow_rejections_and_other_failures_do_not_hold():
    assert verdicts(spike(took_s=0.3) + after())["surplus"].holds is False
    found = verdicts([*spike(), row(70, 1, "failed"), *after()])["surplus"]
    assert found.holds is False and "1 requests ended otherwise" in found.words


def test_goodput_below_80_percent_of_the_knee_does_not_hold():
    assert verdicts(spike(good=47) + after())["goodput"].holds is False
    assert verdicts(spike(good=49) + after())["goodput"].holds is True


def test_searches_do_not_make_up_for_answers_that_were_not_given():
    found = verdicts(spike(good=60, searches=30))
    assert (found["goodput"].holds, found["answers"].holds) == (True, False)
    # Half of the knee is theirs, where half of what was due was theirs.
    half = [row(60 + n / 10, 1, "rejected", 0.02, kind="search") for n in range(600)]
    assert verdicts(spike(good=60, searches=30, rejected=570) + half)["answers"].value == pytest.approx(1.0, rel=0.1)


def test_memory_that_grows_does_not_hold_and_what_was_not_seen_is_not_judged():
    assert verdicts(spike() + after(), memory(0.2))["memory"].holds is False
    found = verdicts(spike() + after())["memory"]
    assert found.holds is None and "not measured" in found.words


def test_recovery_is_when_from_then_on_as_many_are_in_time_as_before_the_spike():
    assert verdicts(before() + spike() + after())["recovery"].value == 0.0
    slow = range(8)  # with fewer of them, 90 % are in time from the first second on
    assert verdicts(before() + spike() + after(*slow))["recovery"].value == 3.0
    assert verdicts(before() + spike() + after(*range(12)))["recovery"].holds is False
    never = verdicts(before() + spike() + after(*range(60)))["recovery"]
    assert never.holds is False and "0% after it" in never.words


def test_what_is_late_by_chance_before_the_spike_may_be_late_after_it():
    late = range(0, 60, 6)
    assert verdicts(before(late=10) + spike() + after(*late))["recovery"].holds is True
    assert verdicts(spike() + after())["recovery"].holds is None


def test_sender_that_is_busy_or_late_does_not_hold():
    assert verdicts(spike(), sender_cpu_s=100.0)["sender"].holds is False
    late = [row(61, 1, lag_s=0.3) for _ in range(30)]
    found = verdicts(spike() + late)["sender"]
    assert found.holds is False and "300 ms late at p99" in found.words
    assert verdicts(spike(), sender_cpu_s=None)["sender"].holds is None


def test_a_sample_is_of_a_process_and_its_children():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = sample_tree(os.getpid())
    finally:
        child.communicate(b"\n")
    assert {os.getpid(), child.pid} <= found.processes.keys()
    ours = found.processes[os.getpid()]
    assert found.rss_bytes > ours.rss_bytes > 10 * 2**20 and found.machine_cpu_s > ours.cpu_s > 0
    # 2**22 is above the largest process number there can be.
    assert not sample_tree(2**22 + 1).processes


def test_cores_are_told_apart_by_process_and_from_everything_else():
    def sample(unix_s, generator_s, machine_s, **others):
        used = {1: Usage("Generator", 512 * 2**20, generator_s)}
        used |= {2 + n: Usage("Gateway", 2**20, cpu_s) for n, cpu_s in enumerate(others.values())}
        return Sample(unix_s, used, machine_s)

    samples = [sample(9, 0, 0), sample(10, 50, 500, a=1), sample(15, 0, 0), sample(20, 64, 519, a=2, b=1)]
    assert used_between(samples, 10, 21) == {
        "Generator": {"cores": 1.4, "mib": 512},
        "Gateway": {"cores": 0.2, "mib": 2},  # one of them is new
        "everything else": {"cores": 0.3},
    }
    assert used_between(samples, 19, 21) == {}


def test_samples_are_taken_until_the_block_ends():
    readings = iter(range(1, 1000))
    with ServerWatch(lambda: Sample(next(readings), {}), every_s=0.001) as watch:
        deadline = time.monotonic() + 10
        while len(watch.samples) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert [each.unix_s for each in watch.samples[:3]] == [1, 2, 3]
    assert not watch._thread.is_alive()


def test_a_data_folder_without_a_server_is_named(tmp_path):
    with pytest.raises(ConfigError, match="names no process"):
        server_pid(tmp_path)
    (tmp_path / "server.json").write_text(f'{{"pid": {2**22 + 1}}}')
    with pytest.raises(ConfigError, match="has ended"):
        server_pid(tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        ("--knee", "0"),
        ("--knee-from", "0"),
        ("--step-seconds", "0"),
        ("--knee", "1", "--factor", "1"),
        ("--knee", "1", "--seconds", "0"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(flags, capsys):
    assert main([*flags, "--url", "http://127.0.0.1:9"]) == 1
    assert "--knee, --knee-from and --step-seconds must be above 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="locust is in the bench extra")
def test_a_server_is_loaded_and_judged(tmp_path, capsys):
    with running_stub() as stub:
        flags = ["--url", stub.url, "--out", str(tmp_path), "--max-lag-ms", "20000"]
        assert main([*flags, "--knee", "2", "--factor", "2", "--seconds", "2"]) == 0
        asked = {body["messages"][0]["content"] for body in stub.behaviour.bodies if "messages" in body}
    assert len(asked) > 20
    printed = capsys.readouterr().out
    assert "answers: holds" in printed and "memory: not judged" in printed
    content = json.loads((tmp_path / "overload.json").read_text())
    assert (content["knee_s"], content["knee_steps"], len(content["figures"])) == (2.0, [], 6)
