"""A folder for files that one process alone needs while it lives."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from engine.errors import DataFolderError
from engine.retrieval.store.data_folder import FolderLock

# A neighbour that is just being made is not locked yet.
_MIN_AGE_S = 60


class OwnFolder:
    """A locked folder among the temporary ones. What killed processes have left there is removed on the way."""

    def __init__(self, prefix: str) -> None:
        """`prefix`: begins the names of folders for the same purpose.

        Raises: DataFolderError when there is no room for temporary files.
        """
        parent = Path(tempfile.gettempdir())
        _remove_abandoned(parent, prefix)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError as error:
            raise DataFolderError(
                f"{parent}: cannot be written ({error.strerror}). Name another folder by TMPDIR."
            ) from None
        self._lock = FolderLock(self.path)

    def remove(self) -> None:
        """Remove it with all files; may be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        try:
            found = folder.stat(follow_symlinks=False)
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _MIN_AGE_S:
                continue
            lock = FolderLock(folder)
        except (OSError, DataFolderError):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
