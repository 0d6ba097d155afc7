"""The command that times what deciding costs: every stage runs, and is counted by question."""

from __future__ import annotations

import json

from loadtest import router_overhead
from loadtest.router_overhead import main


def test_every_stage_is_timed_at_both_batch_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(router_overhead, "_PASSES", {1: 3, 32: 2})
    assert main(["--inputs", "10", "--json", str(tmp_path / "out.json")]) == 0
    costs = json.loads((tmp_path / "out.json").read_text())["costs"]
    assert [(each["stage"], each["batch"]) for each in costs] == [
        (stage, batch) for batch in (1, 32) for stage in ("signals", "ambiguity", "decision", "all")
    ]
    assert all(0 < each["p50_ms"] <= each["p95_ms"] and each["p50_cpu_ms"] <= each["p95_cpu_ms"] for each in costs)
    assert "ms per question" in capsys.readouterr().out


def test_the_made_router_passes_its_own_test():
    assert router_overhead.made_router(("a", "b")).warning is None
