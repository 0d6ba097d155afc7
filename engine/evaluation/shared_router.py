"""The router in the PostgreSQL database of the store, for gateways on machines that share no disk."""

from __future__ import annotations

import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

from engine.errors import DataFolderError
from engine.generation.adapters.storing import locked
from engine.retrieval.store.shared_files import SharedFiles
from engine.routing.artefact import ARRAYS_FILE, JSON_FILE, Artefact, read_artefact

_KIND, _NAME = "router", "default"
_FILES = (JSON_FILE, ARRAYS_FILE)
# In the data folder. Beside the routers that are fetched, nothing lies there.
CACHE_FOLDER = ".router"


class SharedRouter:
    """Every method raises StoreUnavailable and DataFolderError; call them from a thread."""

    def __init__(self, files: SharedFiles, data: Path) -> None:
        """`data` is the data folder of this machine, which caches the router."""
        self._files = files
        self._cache = data / CACHE_FOLDER
        self._fetched: Path | None = None

    def publish(self, folder: Path) -> Artefact:
        """Make the router in `folder` that of every gateway. Returns it. Raises: InvalidRouter, and nothing changes."""
        artefact = read_artefact(folder)
        try:
            with self._files.changing() as change:
                contents = {file: change.upload(folder / file) for file in _FILES}
                change.put(_KIND, _NAME, {"router": artefact.name, "files": contents}, list(contents.values()))
        except OSError as error:
            raise DataFolderError(f"{folder}: cannot be read ({error.strerror}).") from None
        return artefact

    def withdraw(self) -> str | None:
        """Take the router out of the database. Returns its name, None where there was none."""
        with self._files.changing() as change:
            body = change.record(_KIND, _NAME)
            change.drop(_KIND, _NAME)
        return None if body is None else str(body["router"])

    def fetch(self) -> Path | None:
        """The folder with the router of the database, None where that has none. Fetched once, and checked."""
        body = self._files.records(_KIND).get(_NAME)
        if body is None:
            return None
        folder = self._cache / "-".join(body["files"][file][:16] for file in _FILES)
        if folder != self._fetched or not folder.is_dir():
            try:
                self._fetch(body["files"], folder)
            except OSError as error:
                raise DataFolderError(f"{self._cache}: cannot be written ({error.strerror}).") from None
            self._fetched = folder
        return folder

    def _fetch(self, contents: dict[str, str], folder: Path) -> None:
        with locked(self._cache):
            if _is_whole(contents, folder):
                return  # another gateway of this machine was here first
            scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self._cache))
            try:
                for file in _FILES:
                    with (scratch / file).open("wb") as opened:
                        opened.writelines(self._files.content(contents[file]))
                for each in self._cache.iterdir():
                    if each != scratch:
                        shutil.rmtree(each)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(contents: dict[str, str], folder: Path) -> bool:
    try:
        return all(sha256((folder / file).read_bytes()).hexdigest() == contents[file] for file in _FILES)
    except OSError:
        return False
