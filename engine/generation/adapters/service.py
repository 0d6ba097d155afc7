"""The adapters of one generator as its users see them: what the data folder has, what is served, and for how long."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from engine.errors import InvalidAdapter, SwitchyardError, UnknownAdapter
from engine.generation.adapters.content import MAX_JSON_BYTES, read_file
from engine.generation.adapters.files import AdapterInfo
from engine.generation.adapters.manifest import MANIFEST_FILE, AdapterManifest, parse_manifest
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.status import AdapterStatus
from engine.generation.protocol import GenerationEngine

_log = logging.getLogger(__name__)


class AdapterService:
    """Loads and unloads by name, and remembers what is served. Every method may be called from any thread."""

    def __init__(self, engine: GenerationEngine, registry: AdapterRegistry, *, base_name: str) -> None:
        """Serve again what was served before; one that cannot be read any more says so in `statuses`.

        Raises: DataFolderError when the list of what was served is damaged.
        """
        self._engine = engine
        self._registry = registry
        self._base_name = base_name
        self._lock = threading.Lock()
        self._served: dict[str, Path] = registry.served()
        self._failed: dict[str, str] = {}
        for name, folder in self._served.items():
            try:
                engine.load_adapter(name, registry.locate(name, str(folder)))
            except SwitchyardError as error:
                _log.warning("%s", error)
                self._failed[name] = str(error)

    def statuses(self) -> list[AdapterStatus]:
        """What is served, what should be, and what the data folder has beside it; by name."""
        loaded = {info.name: info for info in self._engine.adapters()}
        with self._lock:
            failed = dict(self._failed)
            folders = {name: self._registry.folder / name for name in self._registry.names()} | self._served
        return [self._status(name, folders[name], loaded.get(name), failed.get(name)) for name in sorted(folders)]

    def load(self, name: str, path: str | None = None) -> AdapterStatus:
        """Serve an adapter, or what its folder holds by now. `path` names another folder than its own.

        Raises: UnknownAdapter, InvalidAdapter, DataFolderError, ComponentUnavailable.
        """
        if name == self._base_name:
            raise InvalidAdapter(name, "the base model has that name")
        folder = self._registry.locate(name, path)
        info = self._engine.load_adapter(name, folder)
        with self._lock:
            self._served[name] = folder
            self._failed.pop(name, None)
            self._registry.save_served(self._served)
        return self._status(name, folder, info, None)

    def unload(self, name: str, *, delete_files: bool = False) -> None:
        """Serve an adapter no more; `delete_files` removes its folder too.

        Raises: UnknownAdapter, InvalidAdapter where the folder is not to be deleted, DataFolderError.
        """
        with self._lock:
            is_served = name in self._served
            if not is_served and not delete_files:
                raise UnknownAdapter(name, self._served)
            if is_served:
                if name not in self._failed:
                    self._engine.unload_adapter(name)
                self._failed.pop(name, None)
                del self._served[name]
                self._registry.save_served(self._served)
            if delete_files:
                self._registry.remove(name)

    def _status(self, name: str, folder: Path, info: AdapterInfo | None, error: str | None) -> AdapterStatus:
        home = self._registry.folder.resolve()
        path = folder.resolve()
        return AdapterStatus(
            name=name,
            path=str(path.relative_to(home) if path.is_relative_to(home) else path),
            digest=info.digest if info else None,
            rank=info.rank if info else None,
            targets=info.targets if info else (),
            is_loaded=info is not None,
            error=error,
            manifest=info.manifest if info else _manifest(folder, name),
        )


def _manifest(folder: Path, name: str) -> AdapterManifest | None:
    """What a folder that is not loaded says of itself; loading it tells what is wrong where it cannot be read."""
    try:
        return parse_manifest(read_file(folder, MANIFEST_FILE, name, MAX_JSON_BYTES), name)
    except InvalidAdapter:
        return None
