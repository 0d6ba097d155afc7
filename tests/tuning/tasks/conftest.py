from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads only get into each other's way on models this small."""
    torch.set_num_threads(1)
