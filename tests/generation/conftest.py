from pathlib import Path

import pytest
import torch
from tiny_model import tiny_tokenizer, write_tiny_model
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads only get into each other's way on models this small."""
    torch.set_num_threads(1)
