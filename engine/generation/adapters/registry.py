"""The adapters that a data folder holds, their versions, and which of them are to be served after a restart.

    adapters/served.json                   names and folders of what is served
    adapters/<name>/                       a folder as PEFT writes it, with an optional switchyard.json, or
    adapters/<name>/versions.json          the versions that were added, and the current one
    adapters/<name>/<12 digits>/           the files of a version, named by their content's digest

Several processes may use one folder: files are replaced whole, folders are renamed into place, and whoever changes
anything holds a lock. A crash leaves the earlier or the later state.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.durable_files import left_behind, sync_folder, write_file
from engine.errors import DataFolderError, InvalidAdapter, UnknownAdapter
from engine.generation.adapters.config_file import CONFIG_FILE
from engine.generation.adapters.storing import SCRATCH_PREFIX, copy_files, folder_digest, holds, locked
from engine.generation.adapters.versions import (
    VERSION_DIGITS,
    VERSIONS_FILE,
    AdapterVersion,
    AdapterVersions,
    read_versions,
)

SERVED_FILE = "served.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION_FOLDER = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}")


class AdapterRegistry:
    """The adapters folder of one data folder: an AdapterCatalogue. `allowed` are folders elsewhere that adapters may be
    loaded from.
    """

    def __init__(self, folder: Path, allowed: tuple[Path, ...] = ()) -> None:
        self.folder = folder.absolute()
        self._allowed = allowed

    def names(self) -> list[str]:
        """Folders here that hold an adapter's configuration, or versions of it."""
        if not self.folder.is_dir():
            return []
        homes = (each for each in self.folder.iterdir() if each.is_dir())
        return sorted(
            home.name for home in homes if any((home / file).is_file() for file in (CONFIG_FILE, VERSIONS_FILE))
        )

    def versions(self, name: str) -> AdapterVersions:
        """The versions of adapter `name`, none where it is a plain folder or unknown. Raises: DataFolderError."""
        check_name(name)
        return read_versions(self.folder / name)

    def locate(self, name: str, path: str | None = None, version: str | None = None) -> Path:
        """The folder of adapter `name`: that of a version, by default of the current one, or the adapter's own where it
        has no versions; or `path`, relative to the adapters folder or absolute.

        Raises: UnknownAdapter, UnknownVersion, DataFolderError, InvalidAdapter for a name or path that is not allowed.
        """
        check_name(name)
        if path is None:
            if name not in self.names():
                raise UnknownAdapter(name, self.names())
            known = self.versions(name)
            current = known.current if version is None else known.find(name, version)
            path = f"{name}/{current}" if current else name
        folder = (self.folder / path).resolve()
        roots = [root.expanduser().resolve() for root in (self.folder, *self._allowed)]
        if not any(folder.is_relative_to(root) and folder != root for root in roots):
            raise InvalidAdapter(name, f"{path!r} lies outside the data folder's adapters/ and generator.adapter_paths")
        return folder

    def add(self, name: str, folder: Path, *, digest: str | None = None) -> str:
        """Copy the files in `folder` into a version of adapter `name`, make it the current one, and return it.

        The same files give the same version, once. A plain folder of that name is kept as the version before. The last
        five versions stay, and older ones that are served. What a server has loaded does not change.

        Args:
            folder: PEFT's files, with switchyard.json and what it names where there is one; other files there are
                copied too.
            digest: what `content_digest` should give, where the caller knows.
        Raises: InvalidAdapter where a file is missing or broken, or the digest is another; DataFolderError where the
        disk refuses.
        """
        check_name(name)
        home = self.folder / name
        with self._changing(home):
            _refuse_link(home)
            home.mkdir(exist_ok=True)
            known = self.versions(name)
            self._sweep(home, known)
            if not known.versions and (home / CONFIG_FILE).is_file():
                with suppress(InvalidAdapter):  # what could not be loaded anyway is nothing to go back to
                    known = known.adding(self._store(home, home, name, None))
            added = self._store(folder, home, name, digest)
            known = known.adding(added).keeping(self._served_versions(home))
            write_file(home / VERSIONS_FILE, (known.model_dump_json(indent=1) + "\n").encode())
            self._sweep(home, known)
        return added.version

    def use(self, name: str, version: str) -> str:
        """Make a version the current one, and what is served after a restart where `name` is served from here now.

        Returns it. Raises: UnknownAdapter, UnknownVersion, DataFolderError.
        """
        check_name(name)
        if name not in self.names():
            raise UnknownAdapter(name, self.names())
        home = self.folder / name
        with self._changing(home):
            _refuse_link(home)
            known = self.versions(name)
            found = known.find(name, version)
            write_file(home / VERSIONS_FILE, (known.using(found).model_dump_json(indent=1) + "\n").encode())
            served = self.served()
            if name in served and home in (served[name], served[name].parent):
                self._write_served(served | {name: home / found})
        return found

    def remove(self, name: str) -> None:
        """Delete the folder of adapter `name` with every version.

        Raises: UnknownAdapter, InvalidAdapter where it is not to be deleted, DataFolderError.
        """
        check_name(name)
        if name not in self.names():
            raise UnknownAdapter(name, self.names())
        home = self.folder / name
        with self._changing(home):
            _refuse_link(home)
            shutil.rmtree(home)

    def served(self) -> dict[str, Path]:
        """Folders by name of what is to be served. Raises: DataFolderError when the file is damaged."""
        path = self.folder / SERVED_FILE
        if not path.exists():
            return {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): self.folder / folder for name, folder in raw.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DataFolderError(f"{path}: cannot be read ({error}). Delete it and load the adapters anew.") from None

    def set_served(self, name: str, folder: Path | None) -> None:
        """Note what is to be served as `name` from now on, None: nothing. Raises: DataFolderError."""
        with self._changing(self.folder / SERVED_FILE):
            others = {other: each for other, each in self.served().items() if other != name}
            self._write_served(others if folder is None else others | {name: folder})

    @contextmanager
    def _changing(self, path: Path) -> Iterator[None]:
        """Hold the lock while `path` in this folder is changed."""
        try:
            with locked(self.folder):
                yield
        except OSError as error:
            raise DataFolderError(f"{path}: cannot be written ({error.strerror}).") from None

    # The rest is called under the lock.

    def _write_served(self, folders: Mapping[str, Path]) -> None:
        home = self.folder.resolve()
        relative = {}
        for name, each in sorted(folders.items()):
            root = next((root for root in (home, self.folder) if each.is_relative_to(root)), None)
            relative[name] = str(each.relative_to(root) if root else each)
        write_file(self.folder / SERVED_FILE, (json.dumps(relative, indent=1) + "\n").encode())

    def _served_versions(self, home: Path) -> set[str]:
        """Versions of one adapter that are served, under whatever name."""
        return {folder.name for folder in self.served().values() if folder.resolve().parent == home.resolve()}

    def _store(self, source: Path, home: Path, name: str, digest: str | None) -> AdapterVersion:
        if not source.is_dir():
            raise InvalidAdapter(name, f"{str(source)!r} is no folder")
        scratch = copy_files(source, home)
        try:
            found = folder_digest(scratch, name)
            if digest is not None and digest != found:
                raise InvalidAdapter(name, f"its files have the digest {found}, not {digest[:80]}; save them again")
            target = home / AdapterVersion.name_of(found)
            if not holds(target, found, name):
                if target.exists():
                    target.rename(scratch.with_name(f"{scratch.name}-changed"))  # swept with other scratch
                scratch.rename(target)
                sync_folder(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return AdapterVersion(version=target.name, digest=found, added_at=time.time())

    def _sweep(self, home: Path, known: AdapterVersions) -> None:
        """Delete what an interrupted change left behind, and versions that are no longer listed."""
        kept = {*known.names(), *self._served_versions(home)}
        for each in home.iterdir():
            if each.name.startswith(SCRATCH_PREFIX) or (_VERSION_FOLDER.fullmatch(each.name) and each.name not in kept):
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        for each in left_behind(home / VERSIONS_FILE):
            each.unlink()


def check_name(name: str) -> None:
    """Raise InvalidAdapter for a name that is no plain folder name, or that `model` means something else by."""
    if not _NAME.fullmatch(name) or name == "auto":
        raise InvalidAdapter(name[:80], "a name has 1 to 64 letters, digits, `_`, `.` or `-`, and is not `auto`")


def _refuse_link(home: Path) -> None:
    if home.is_symlink():
        raise InvalidAdapter(
            home.name, "its folder is a link, which is not followed to delete or to write; change what it points to"
        )
