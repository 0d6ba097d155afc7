"""Files that are there whole or not at all, after a kill or a power cut as well."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write `path` by a temporary file beside it, synced before it takes the name. Raises: OSError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def move_into_place(partial: Path, final: Path) -> None:
    """Give a finished file its name: after a crash, `final` is what it was before or all of the new file."""
    handle = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    partial.replace(final)
    sync_folder(final.parent)


def left_behind(path: Path) -> list[Path]:
    """Temporary files of `write_file` for `path`, its killed calls' and those still at work."""
    return list(path.parent.glob(f".{path.name}.*.tmp"))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises: OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
