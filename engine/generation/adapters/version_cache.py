"""Versions of adapters that were fetched from a database: whole, checked, and moved into place.

    <folder>/<name>/<12 digits>/    the files of a version

Several processes may use one folder; whoever writes holds its lock.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engine.durable_files import sync_folder
from engine.errors import DataFolderError, InvalidAdapter
from engine.generation.adapters.catalogue import FileStore
from engine.generation.adapters.storing import SCRATCH_PREFIX, copy_files, folder_digest, holds, locked
from engine.generation.adapters.versions import AdapterVersion


class VersionCache:
    """Every method raises DataFolderError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, folder: Path) -> tuple[str, str] | None:
        """Adapter and version of a folder in here, None of any other."""
        if not folder.is_relative_to(self.folder):
            return None
        parts = folder.relative_to(self.folder).parts
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def fetch(
        self, name: str, version: AdapterVersion, files: Mapping[str, str], store: FileStore, kept: Collection[str]
    ) -> Path:
        """The folder of a version, fetched where it is not here or is not what it was.

        Args:
            files: SHA-256 of each of its files, by which `store` gives them.
            kept: versions of this adapter that stay here.
        Raises: InvalidAdapter where the store has something else under that version; what the store raises.
        """
        target = self.folder / name / version.version
        with self._writing(target):
            if not holds(target, version.digest, name):
                self._fetch(target, version.digest, files, store)
            for each in target.parent.iterdir():
                if each.name not in kept:
                    shutil.rmtree(each, ignore_errors=True)
        return target

    @contextmanager
    def copied(self, name: str, source: Path) -> Iterator[tuple[Path, str]]:
        """A copy of an adapter's files, and its digest; in its place as a version once the block ends without an error.

        Raises: InvalidAdapter where the files are none.
        """
        if not source.is_dir():
            raise InvalidAdapter(name, f"{str(source)!r} is no folder")
        home = self.folder / name
        with self._writing(home):
            home.mkdir(exist_ok=True)
            for each in home.glob(f"{SCRATCH_PREFIX}*"):
                shutil.rmtree(each, ignore_errors=True)  # a kill left it
            scratch = copy_files(source, home)
            try:
                digest = folder_digest(scratch, name)
                yield scratch, digest
                target = home / AdapterVersion.name_of(digest)
                if not holds(target, digest, name):
                    _move(scratch, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Delete every version of an adapter."""
        with self._writing(self.folder / name):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _fetch(self, target: Path, digest: str, files: Mapping[str, str], store: FileStore) -> None:
        name = target.parent.name
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=target.parent))
        try:
            scratch.chmod(0o755)
            for file, content in files.items():
                if Path(file).name != file or file.startswith("."):
                    raise InvalidAdapter(name, f"the store names a file of it {file[:80]!r}")
                with (scratch / file).open("xb") as opened:
                    opened.writelines(store.content(content))
            found = folder_digest(scratch, name)
            if found != digest:
                raise InvalidAdapter(
                    name, f"the store has files of the digest {found[:12]}... as version {target.name}"
                )
            _move(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Hold the lock while `path` in here is changed."""
        try:
            with locked(self.folder):
                path.parent.mkdir(parents=True, exist_ok=True)
                yield
        except OSError as error:
            raise DataFolderError(f"{path}: cannot be written ({error.strerror}).") from None


def _move(scratch: Path, target: Path) -> None:
    """Put a complete folder in its place, durably, whatever lies there."""
    sync_folder(scratch)
    if target.exists():
        target.rename(scratch.with_name(f"{scratch.name}-changed"))  # swept with other scratch
    scratch.rename(target)
    sync_folder(target.parent)
