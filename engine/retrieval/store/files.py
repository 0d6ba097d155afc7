"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def move_into_place(partial: Path, final: Path) -> None:
    """Give a finished file its name: after a crash, `final` is what it was before or all of the new file."""
    _sync(partial)
    partial.replace(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
