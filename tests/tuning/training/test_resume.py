from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tuning.training.made_examples import random_examples
from tuning.training.run_training import SETTINGS, run

from engine.errors import CheckpointMismatch
from engine.tuning.training.events import Event, Resumed, Stepped
from engine.tuning.training.result import TrainingResult

REPOSITORY = Path(__file__).parents[3]


class Stopped(Exception):
    """Raised by a listener, where a test stops a run in its own process."""


def stop_at(step: int):
    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == step:
            raise Stopped

    return listen


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, list[float]]:
    """A run that nothing interrupts, and the loss of each of its steps."""
    events: list[Event] = []
    torch.manual_seed(5)
    result = run(tiny_model, tmp_path_factory.mktemp("whole"), on_event=events.append)
    return result, [event.loss for event in events if isinstance(event, Stepped)]


def kill_at(step: int, model: Path, folder: Path, checkpoint_every_s: float) -> None:
    """Train in another process, and send it SIGKILL when it says that `step` is done."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    command = [sys.executable, "-m", "tuning.training.run_training", str(model), str(folder), str(checkpoint_every_s)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= step:
                process.kill()
                break
        else:
            process.kill()
            pytest.fail("the run ended before it was killed")
    assert process.returncode == -9


@pytest.mark.parametrize("checkpoint_every_s", [0.0, 1000.0])
def test_killed_run_goes_on_to_the_same_losses_and_the_same_adapter(
    tiny_model: Path, tmp_path: Path, whole: tuple[TrainingResult, list[float]], checkpoint_every_s: float
):
    uninterrupted, losses = whole
    # With the long interval only evaluations are saved, so some steps are taken twice.
    step = random.randrange(6, len(losses) - 3)
    kill_at(step, tiny_model, tmp_path, checkpoint_every_s)
    events: list[Event] = []
    result = run(tiny_model, tmp_path, on_event=events.append)
    assert isinstance(events[0], Resumed), f"killed at {step}"
    if checkpoint_every_s == 0.0:
        assert events[0].step >= step - 1
    again = [event.loss for event in events if isinstance(event, Stepped)]
    assert again == losses[events[0].step :], f"killed at {step}, resumed at {events[0].step}"
    assert result.adapter_digest == uninterrupted.adapter_digest
    assert result.run.history == uninterrupted.run.history
    assert result.run.best == uninterrupted.run.best


def test_same_seed_gives_the_same_files_in_another_process(
    tiny_model: Path, tmp_path: Path, whole: tuple[TrainingResult, list[float]]
):
    code = (
        "import sys, torch; from pathlib import Path; from tuning.training.run_training import run\n"
        "torch.set_num_threads(1); torch.manual_seed(5); run(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, tiny_model, tmp_path], env=environment, check=True, cwd=REPOSITORY)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / file).read_bytes() == (whole[0].adapter / file).read_bytes()


def test_another_seed_gives_another_adapter(
    tiny_model: Path, tmp_path: Path, whole: tuple[TrainingResult, list[float]]
):
    torch.manual_seed(5)
    other = run(tiny_model, tmp_path, settings=replace(SETTINGS, seed=1))
    assert other.adapter_digest != whole[0].adapter_digest


def test_stopped_run_refuses_other_settings_and_data_by_name(tiny_model: Path, tmp_path: Path):
    with pytest.raises(Stopped):
        run(tiny_model, tmp_path, checkpoint_every_s=0.0, on_event=stop_at(3))
    with pytest.raises(CheckpointMismatch, match=r"learning_rate was 0\.001 and is now 0\.002\. .* delete the folder"):
        run(tiny_model, tmp_path, settings=replace(SETTINGS, learning_rate=2e-3))
    with pytest.raises(CheckpointMismatch, match="training examples was"):
        run(tiny_model, tmp_path, training=random_examples(60, seed=9))
    with pytest.raises(CheckpointMismatch, match="base weights was float32 and is now bfloat16"):
        run(tiny_model, tmp_path, dtype=torch.bfloat16)


def test_damaged_checkpoint_gives_way_to_the_one_before(
    tiny_model: Path, tmp_path: Path, whole: tuple[TrainingResult, list[float]]
):
    torch.manual_seed(5)
    with pytest.raises(Stopped):
        run(tiny_model, tmp_path, checkpoint_every_s=0.0, on_event=stop_at(8))
    newest = max((tmp_path / "checkpoints").iterdir())
    assert newest.name == "step-000000007.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    events: list[Event] = []
    result = run(tiny_model, tmp_path, on_event=events.append)
    assert events[0] == Resumed(6, result.run.num_steps)
    assert result.adapter_digest == whole[0].adapter_digest


def test_finished_run_leaves_no_checkpoint(whole: tuple[TrainingResult, list[float]]):
    assert sorted(path.name for path in whole[0].adapter.parent.iterdir()) == ["adapter"]
