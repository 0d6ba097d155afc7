"""The trained adapter as a folder that a server loads: PEFT's files and the manifest, in the data folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.errors import TrainingError
from engine.generation.adapters.manifest import MANIFEST_FILE, AdapterManifest
from engine.tuning.training.atomic import sync_folder, write_file

ADAPTERS = "adapters"


def write_manifest(folder: Path, manifest: AdapterManifest) -> None:
    """Write switchyard.json beside PEFT's files. Raises: TrainingError when the disk refuses."""
    try:
        write_file(folder / MANIFEST_FILE, (manifest.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise TrainingError(f"{folder}: the manifest cannot be written ({error.strerror}). Free disk space.") from None


def register(data: Path, name: str, folder: Path) -> Path:
    """Put a copy of the adapter in `folder` into the data folder's adapters, in place of an earlier one of that name.

    Returns: its folder there. Raises: TrainingError when the disk refuses; what was there is then untouched.
    """
    home = data / ADAPTERS / name
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, scratch)
        for file in scratch.iterdir():
            write_file(file, file.read_bytes())
        if home.exists():
            home.rename(replaced)
        scratch.rename(home)
        sync_folder(home.parent)
    except OSError as error:
        raise TrainingError(f"{home}: the adapter cannot be put there ({error.strerror}). Free disk space.") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return home
