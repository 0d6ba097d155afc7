from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import TrainingError
from engine.tuning.training.checkpoint import Checkpoint, delete_checkpoints, load_checkpoint, save_checkpoint

IDENTITY = {"seed": 0}


def made(step: int) -> Checkpoint:
    return Checkpoint(step, IDENTITY, {"loss": 0.1 + 0.2, "step": step}, {"weights": torch.arange(4.0) + step})


def test_newest_generation_comes_back_exactly_and_two_are_kept(tmp_path: Path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, made(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000002.safetensors",
        "step-000000010.safetensors",
    ]
    found = load_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert (found.step, found.state) == (10, {"loss": 0.1 + 0.2, "step": 10})
    assert torch.equal(found.tensors["weights"], torch.arange(4.0) + 10)


def test_half_written_file_is_not_taken_for_a_checkpoint(tmp_path: Path):
    path = save_checkpoint(tmp_path, made(1))
    (tmp_path / f".{path.name}.99.tmp").write_bytes(path.read_bytes()[:50])
    found = load_checkpoint(tmp_path, IDENTITY)
    assert found is not None and found.step == 1


def test_folder_without_a_checkpoint_gives_none(tmp_path: Path):
    assert load_checkpoint(tmp_path, IDENTITY) is None
    assert load_checkpoint(tmp_path / "absent", IDENTITY) is None


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 64])
def test_no_whole_checkpoint_is_said_with_the_way_out(tmp_path: Path, content: bytes):
    save_checkpoint(tmp_path, made(1)).write_bytes(content)
    with pytest.raises(TrainingError, match=r"no checkpoint is whole \(step-000000001.*Delete the folder"):
        load_checkpoint(tmp_path, IDENTITY)


def test_full_disk_is_said_and_the_generation_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, made(1))

    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(TrainingError, match=r"No space left on device.*goes on from the checkpoint before"):
        save_checkpoint(tmp_path, made(2))
    found = load_checkpoint(tmp_path, IDENTITY)
    assert found is not None and found.step == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_deleting_removes_an_empty_folder_and_leaves_other_files(tmp_path: Path):
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, made(1))
    (tmp_path / "two" / "notes.txt").write_text("mine")
    for name in ("one", "two", "absent"):
        delete_checkpoints(tmp_path / name)
    assert not (tmp_path / "one").exists()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["notes.txt"]
