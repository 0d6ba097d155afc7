"""A run's folder: whose it is, and what is kept of a run that was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import TrainingError
from engine.tuning.run.work_folder import RESULT_FILE, TRAINING, open_work_folder


def test_step_is_taken_once_by_all_sessions_of_a_run(tmp_path: Path):
    calls = []
    for _ in range(2):
        with open_work_folder(tmp_path / "bot", {"data": "a", "curve": (1, 2)}, restart=False) as work:
            assert work.once("step.json", lambda: calls.append(1) or {"n": 1}) == {"n": 1}
    assert calls == [1]


def test_run_that_trained_is_kept_from_another_one_and_a_finished_one_gives_way(tmp_path: Path):
    with open_work_folder(tmp_path / "bot", {"data": "a"}, restart=False) as work:
        work.write(f"{TRAINING}/kept.json", 1)
    with (
        pytest.raises(TrainingError, match=r"data was a and is now b.*--restart"),
        open_work_folder(tmp_path / "bot", {"data": "b"}, restart=False),
    ):
        raise AssertionError("it must not open")
    with open_work_folder(tmp_path / "bot", {"data": "a"}, restart=False) as work:
        assert work.read(f"{TRAINING}/kept.json") == 1
        work.write(RESULT_FILE, {})
    with open_work_folder(tmp_path / "bot", {"data": "b"}, restart=False) as work:
        assert work.read(f"{TRAINING}/kept.json") is None


def test_run_that_did_not_train_gives_way_and_restart_deletes_any(tmp_path: Path):
    with open_work_folder(tmp_path / "bot", {"data": "a"}, restart=False) as work:
        work.write("known.json", 1)
    with open_work_folder(tmp_path / "bot", {"data": "b"}, restart=False) as work:
        assert work.read("known.json") is None
        work.write(f"{TRAINING}/kept.json", 1)
    with open_work_folder(tmp_path / "bot", {"data": "c"}, restart=True) as work:
        assert work.read(f"{TRAINING}/kept.json") is None


def test_two_runs_of_one_name_do_not_meet(tmp_path: Path):
    with (
        open_work_folder(tmp_path / "bot", {}, restart=False),
        pytest.raises(TrainingError, match="another `switchyard tune` is at work there"),
        open_work_folder(tmp_path / "bot", {}, restart=True),
    ):
        raise AssertionError("it must not open")


def test_damaged_step_is_taken_again(tmp_path: Path):
    with open_work_folder(tmp_path / "bot", {}, restart=False) as work:
        (work.path / "step.json").write_text("{")
        assert work.once("step.json", lambda: 2) == 2
