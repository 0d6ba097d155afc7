"""The adapter's folder in the data folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import TrainingError
from engine.tuning.run.registering import register


def made(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def test_registered_adapter_takes_the_place_of_an_earlier_one_whole(tmp_path: Path):
    home = register(tmp_path, "bot", made(tmp_path / "tuning" / "adapter", config="1", old="x"))
    assert home == tmp_path / "adapters" / "bot"
    register(tmp_path, "bot", made(tmp_path / "other" / "adapter", config="2"))
    assert {file.name: file.read_text() for file in home.iterdir()} == {"config": "2"}
    assert [each.name for each in (tmp_path / "adapters").iterdir()] == ["bot"]
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["adapter"]


def test_adapter_that_cannot_be_put_there_leaves_what_was_there(tmp_path: Path):
    home = register(tmp_path, "bot", made(tmp_path / "tuning" / "adapter", config="1"))
    with pytest.raises(TrainingError, match="the adapter cannot be put there"):
        register(tmp_path, "bot", tmp_path / "nowhere")
    assert (home / "config").read_text() == "1"
