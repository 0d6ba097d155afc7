"""Ray's workers, in a process of their own: a test run has one Ray already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import write_tiny_model
from tuning.training.run_training import run

REPOSITORY = Path(__file__).parents[2]


def on_ray(model: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    command = [sys.executable, "-m", "serving.run_ray_training", str(model), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=300)


@pytest.mark.slow
def test_two_ray_workers_end_with_the_losses_of_one(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model")
    alone = run(model, tmp_path / "alone", metric=None, dtype=None).run  # as the workers choose it
    done = on_ray(model, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [float(line) for line in lines if not line.startswith("step")] == pytest.approx(
        [point.valid_loss for point in alone.history], rel=1e-3
    )
    assert lines.count(f"step {alone.num_steps}") == 1
    assert [file.name for file in (tmp_path / "two").iterdir()] == ["adapter"]


@pytest.mark.slow
def test_error_of_a_ray_worker_is_told_as_it_is(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model")
    done = on_ray(model, tmp_path / "two", "--nan-metric")
    assert done.returncode == 1
    assert "the task metric is nan after step" in done.stdout
    assert "Traceback" not in done.stdout
