from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning.training.run_training import SETTINGS, run

from engine.tuning.training.workers import Workers

REPOSITORY = Path(__file__).parents[3]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=50), st.integers(1, 8))
def test_shares_of_all_workers_are_the_whole_in_order(lengths: list[int], size: int):
    shares = [Workers(rank, size).share(lengths) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(len(lengths)))


def test_shares_weigh_tokens_and_not_examples():
    shares = [Workers(rank, 2).share([900, 300, 300, 300]) for rank in range(2)]
    assert shares == [range(0, 1), range(1, 4)]


def together(model: Path, folder: Path, size: int, *, batch_tokens: int) -> list[list[str]]:
    """What each of `size` processes prints: the digest of its adapter, and its validation losses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    command = [sys.executable, "-m", "tuning.training.run_worker", str(model), str(folder), str(batch_tokens)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * size
    return outputs


@pytest.mark.parametrize("batch_tokens", [200, 1])
def test_two_workers_end_with_the_losses_of_one(batch_tokens: int, tiny_model: Path, tmp_path: Path):
    """With steps of one example, one of the workers has nothing to do."""
    settings = replace(SETTINGS, batch_tokens=batch_tokens, epochs=1)
    alone = run(tiny_model, tmp_path / "alone", settings=settings)
    first, second = together(tiny_model, tmp_path / "two", 2, batch_tokens=batch_tokens)
    assert first == second, "the workers disagree"
    losses = [float(line) for line in first[1:]]
    assert losses == pytest.approx([point.valid_loss for point in alone.run.history], rel=1e-3)
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["adapter"]
