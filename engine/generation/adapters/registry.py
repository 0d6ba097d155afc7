"""The adapters that a data folder holds, and which of them are to be served after a restart.

`adapters/<name>/` is a folder as PEFT writes it, with an optional switchyard.json. `adapters/served.json` maps names to
folders; it is replaced whole, so a crash leaves the earlier or the later set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from engine.errors import DataFolderError, InvalidAdapter, UnknownAdapter
from engine.generation.adapters.config_file import CONFIG_FILE

SERVED_FILE = "served.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class AdapterRegistry:
    """The adapters folder of one data folder. `allowed` are folders elsewhere that adapters may be loaded from."""

    def __init__(self, folder: Path, allowed: tuple[Path, ...] = ()) -> None:
        self.folder = folder.absolute()
        self._allowed = allowed

    def names(self) -> list[str]:
        """Folders here that hold an adapter's configuration."""
        if not self.folder.is_dir():
            return []
        return sorted(each.name for each in self.folder.iterdir() if (each / CONFIG_FILE).is_file())

    def locate(self, name: str, path: str | None = None) -> Path:
        """The folder of adapter `name`: its own here, or `path`, relative to the adapters folder or absolute.

        Raises: UnknownAdapter, InvalidAdapter for a name or a path that is not allowed.
        """
        check_name(name)
        if path is None and name not in self.names():
            raise UnknownAdapter(name, self.names())
        folder = (self.folder / (path or name)).resolve()
        roots = [root.expanduser().resolve() for root in (self.folder, *self._allowed)]
        if not any(folder.is_relative_to(root) and folder != root for root in roots):
            raise InvalidAdapter(
                name, f"{path or name!r} lies outside the data folder's adapters/ and generator.adapter_paths"
            )
        return folder

    def remove(self, name: str) -> None:
        """Delete the folder of adapter `name`. Raises: UnknownAdapter, InvalidAdapter where it is not to be deleted."""
        check_name(name)
        folder = self.folder / name
        if name not in self.names():
            raise UnknownAdapter(name, self.names())
        if folder.is_symlink():
            raise InvalidAdapter(name, "its folder is a link, which is not followed to delete; remove it yourself")
        shutil.rmtree(folder)

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

    def save_served(self, folders: Mapping[str, Path]) -> None:
        """Note what is to be served from now on. Raises: DataFolderError when it cannot be written."""
        home = self.folder.resolve()
        relative = {
            name: str(each.relative_to(home) if each.is_relative_to(home) else each)
            for name, each in sorted(folders.items())
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self.folder, delete=False) as file:
                file.write(json.dumps(relative, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(self.folder / SERVED_FILE)
        except OSError as error:
            raise DataFolderError(f"{self.folder / SERVED_FILE}: cannot be written ({error.strerror}).") from None


def check_name(name: str) -> None:
    """Raise InvalidAdapter for a name that is no plain folder name, or that `model` means something else by."""
    if not _NAME.fullmatch(name) or name == "auto":
        raise InvalidAdapter(name[:80], "a name has 1 to 64 letters, digits, `_`, `.` or `-`, and is not `auto`")
