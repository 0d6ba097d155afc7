"""What a run ends with, and the adapter's folder."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from engine.durable_files import write_file
from engine.errors import TrainingError
from engine.generation.adapters.config_file import CONFIG_FILE
from engine.generation.adapters.content import WEIGHTS_FILE
from engine.tuning.outcome import TrainingRun


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The adapter of the best evaluation in `adapter`, the digest of its weights as they were written, and the run."""

    adapter: Path
    adapter_digest: str
    run: TrainingRun


def exported(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float16, half the bytes to ship and to hold; tensors with values beyond its range as they are."""
    most = torch.finfo(torch.float16).max
    return {
        name: weight.to(torch.float16) if weight.abs().max() <= most else weight for name, weight in weights.items()
    }


def write_adapter(folder: Path, weights: Mapping[str, Tensor], config: bytes) -> Path:
    """Write PEFT's two files, the weights last. Returns `folder`. Raises: TrainingError when the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG_FILE, config)
        write_file(folder / WEIGHTS_FILE, save_tensors(dict(weights), {"format": "pt"}))
    except OSError as error:
        raise TrainingError(f"{folder}: the adapter cannot be written ({error.strerror}). Free disk space.") from None
    return folder


def peak_memory_bytes() -> int:
    """The most memory this process has held, by getrusage (which counts KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_gpu_bytes(device: str) -> int:
    """The most that torch has allocated on a GPU; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
