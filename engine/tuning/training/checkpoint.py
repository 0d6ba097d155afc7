"""A run's whole state as one safetensors file, so that a killed run goes on bit for bit.

Tensors are the adapter, the moments of AdamW, the best adapter and torch's random states; everything else is JSON in
the file's metadata. The newest two generations are kept, and a damaged one gives way to the one before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from engine.durable_files import sync_folder, write_file
from engine.errors import CheckpointMismatch, TrainingError
from engine.tuning.training.model import weights_digest

FORMAT = 1
GENERATIONS = 2
_NAME = re.compile(r"step-(\d{9})\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`state` is plain JSON, `tensors` lie on the CPU. `identity` says what the run is of, one value for each name."""

    step: int
    identity: Mapping[str, Any]
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write one generation and drop those before the last two. Returns its path.

    Raises: TrainingError when the disk does not take it; the generations before are then untouched.
    """
    header = {
        "format": FORMAT,
        "step": checkpoint.step,
        "identity": dict(checkpoint.identity),
        "state": dict(checkpoint.state),
        "tensors_sha256": weights_digest(checkpoint.tensors),
    }
    path = folder / f"step-{checkpoint.step:09d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, save_tensors(dict(checkpoint.tensors), {"switchyard": json.dumps(header)}))
        for old in _generations(folder)[GENERATIONS:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{path}: the checkpoint cannot be written ({error.strerror}). Free disk space and run it again: "
            "it goes on from the checkpoint before."
        ) from None
    return path


def load_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest whole generation in `folder`; None where there is none.

    Raises: CheckpointMismatch naming what differs, when it is of another run; TrainingError when files are there and
    none of them is whole.
    """
    damage = ""
    for path in _generations(folder):
        try:
            found = _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damage = damage or f"{path.name}: {' '.join(str(error).split())}"
            continue
        _check_identity(folder, found.identity, identity)
        return found
    if damage:
        raise TrainingError(f"{folder}: no checkpoint is whole ({damage}). Delete the folder to train from the start.")
    return None


def delete_checkpoints(folder: Path) -> None:
    """Remove the generations, and the folder when nothing else is in it."""
    for path in _generations(folder):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
        sync_folder(folder.parent)


def _generations(folder: Path) -> list[Path]:
    """Newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def _read(path: Path) -> Checkpoint:
    content = path.read_bytes()
    tensors = load_tensors(content)
    # safetensors: eight bytes of length, then the header as JSON.
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["switchyard"])
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}, this version reads {FORMAT}")
    if weights_digest(tensors) != header["tensors_sha256"]:
        raise ValueError("its tensors do not have their checksum")
    return Checkpoint(header["step"], header["identity"], header["state"], tensors)


def _check_identity(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differences = [
        f"{name} was {_short(found.get(name))} and is now {_short(asked.get(name))}"
        for name in sorted({*found, *asked})
        if found.get(name) != asked.get(name)
    ]
    if differences:
        raise CheckpointMismatch(
            f"{folder} holds a stopped run of another kind: {'; '.join(differences)}. "
            "Ask for what it was, or delete the folder to train from the start."
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
