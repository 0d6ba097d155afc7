"""The trained adapter as a folder that a server loads: PEFT's files and the manifest, in the data folder."""

from __future__ import annotations

from pathlib import Path

from engine.durable_files import write_file
from engine.errors import TrainingError
from engine.generation.adapters.manifest import MANIFEST_FILE, AdapterManifest
from engine.retrieval.store.address import chosen_store
from engine.tuning.adapter_store import open_adapters


def write_manifest(folder: Path, manifest: AdapterManifest) -> None:
    """Write switchyard.json beside PEFT's files. Raises: TrainingError when the disk refuses."""
    try:
        write_file(folder / MANIFEST_FILE, (manifest.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise TrainingError(f"{folder}: the manifest cannot be written ({error.strerror}). Free disk space.") from None


def register(data: Path, name: str, folder: Path) -> Path:
    """Make the adapter in `folder` the current version of `name` in the data folder, or in the database that
    SWITCHYARD_STORE names.

    Returns: the version's folder. Raises: InvalidAdapter, DataFolderError when the disk refuses.
    """
    registry = open_adapters(data, chosen_store(None))
    return registry.locate(name, version=registry.add(name, folder))
