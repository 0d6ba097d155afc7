"""The adapters of a generator as its users see them: what the data folder has, what is served, and for how long."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from engine.errors import InvalidAdapter, SwitchyardError, UnknownAdapter
from engine.generation.adapters.catalogue import AdapterCatalogue
from engine.generation.adapters.content import MAX_JSON_BYTES, read_file
from engine.generation.adapters.host import AdapterHost, AdapterInfo, served_adapters
from engine.generation.adapters.manifest import MANIFEST_FILE, AdapterManifest, parse_manifest
from engine.generation.adapters.status import AdapterStatus, ServedAdapter
from engine.generation.adapters.versions import AdapterVersions

_log = logging.getLogger(__name__)


class AdapterService:
    """Loads and unloads by name, and remembers what is served. Every method may be called from any thread."""

    def __init__(self, host: AdapterHost, registry: AdapterCatalogue, *, base_name: str) -> None:
        """Serve again what was served before; one that cannot be read any more says so in `statuses`.

        Raises: DataFolderError when the list of what was served is damaged.
        """
        self._host = host
        self._registry = registry
        self._base_name = base_name
        self._changes = threading.Lock()  # held for as long as one takes
        self._lock = threading.Lock()  # guards what follows
        self._served: dict[str, Path] = {}
        self._failed: dict[str, str] = {}
        self._again: set[str] = set()  # of these, what may be there later
        self._closed = threading.Event()
        self.refresh()

    def refresh(self) -> None:
        """Serve what is to be served by now: another process may have changed it, which is being replaced by this one,
        and what could not be had may be there.

        Raises: DataFolderError, StoreUnavailable where that cannot be read; all stays as it was.
        """
        with self._changes:
            wanted = self._registry.served()
            for name in self._served.keys() - wanted.keys():
                if name not in self._failed:
                    self._host.unload_adapter(name)
            failed, again = dict[str, str](), set[str]()
            for name, folder in wanted.items():
                is_same = self._served.get(name) == folder
                if is_same and name not in self._again:
                    if name in self._failed:
                        failed[name] = self._failed[name]
                    continue
                try:
                    self._host.load_adapter(name, self._registry.locate(name, str(folder)))
                except SwitchyardError as error:
                    if self._failed.get(name) != str(error):
                        _log.warning("%s", error)
                    if name in self._served and name not in self._failed:
                        self._host.unload_adapter(name)  # it is not what was asked for
                    failed[name] = str(error)
                    if not isinstance(error, InvalidAdapter):
                        again.add(name)
            with self._lock:
                self._served, self._failed, self._again = wanted, failed, again

    def go_on_refreshing(self, every_s: float) -> None:
        """Refresh in a thread of its own until `close`."""

        def refresh() -> None:
            while not self._closed.wait(every_s):
                try:
                    self.refresh()
                except Exception as error:
                    _log.warning("what is to be served is not known anew: %s", error)

        threading.Thread(target=refresh, name="adapters", daemon=True).start()

    def close(self) -> None:
        """Refresh no more; calling it again does nothing."""
        self._closed.set()

    def served(self) -> list[ServedAdapter]:
        """What requests may name, from memory; by name."""
        return served_adapters(self._host)

    def statuses(self) -> list[AdapterStatus]:
        """What is served, what should be, and what the data folder has beside it; by name."""
        loaded = {info.name: info for info in self._host.adapters()}
        with self._lock:
            failed = dict(self._failed)
            served = dict(self._served)
        names = sorted({*self._registry.names(), *served})
        return [self._status(name, served.get(name), loaded.get(name), failed.get(name)) for name in names]

    def load(self, name: str, path: str | None = None, version: str | None = None) -> AdapterStatus:
        """Serve an adapter: its current version, or what its folder holds by now. `version` becomes the current one;
        `path` names another folder than its own.

        Raises: UnknownAdapter, UnknownVersion, InvalidAdapter, DataFolderError, ComponentUnavailable.
        """
        if name == self._base_name:
            raise InvalidAdapter(name, "the base model has that name")
        folder = self._registry.locate(name, path, version)
        with self._changes:
            info = self._host.load_adapter(name, folder)
            with self._lock:
                if version is not None:
                    self._registry.use(name, version)
                self._registry.set_served(name, folder)
                self._served[name] = self._registry.served()[name]
                self._failed.pop(name, None)
                self._again.discard(name)
        return self._status(name, folder, info, None)

    def unload(self, name: str, *, delete_files: bool = False) -> None:
        """Serve an adapter no more; `delete_files` removes its folder with every version too.

        Raises: UnknownAdapter, InvalidAdapter where the folder is not to be deleted, DataFolderError.
        """
        with self._changes:
            with self._lock:
                is_served, has_failed = name in self._served, name in self._failed
                if not is_served and not delete_files:
                    raise UnknownAdapter(name, self._served)
            if is_served and not has_failed:
                self._host.unload_adapter(name)
            with self._lock:
                if is_served:
                    self._failed.pop(name, None)
                    self._again.discard(name)
                    del self._served[name]
                    self._registry.set_served(name, None)
                if delete_files:
                    self._registry.remove(name)

    def _status(self, name: str, served: Path | None, info: AdapterInfo | None, error: str | None) -> AdapterStatus:
        home = self._registry.folder / name
        try:
            versions = self._registry.versions(name)
        except SwitchyardError as damaged:
            versions, error = AdapterVersions(), error or str(damaged)
        path = (served or home / (versions.current or "")).resolve()
        root = self._registry.folder.resolve()
        is_version = path.parent == home.resolve() and path.name in versions.names()
        return AdapterStatus(
            name=name,
            path=str(path.relative_to(root) if path.is_relative_to(root) else path),
            digest=info.digest if info else None,
            rank=info.rank if info else None,
            targets=info.targets if info else (),
            is_loaded=info is not None,
            replicas=int(info is not None),
            error=error,
            manifest=info.manifest if info else _manifest(path, name),
            version=path.name if is_version else None,
            versions=versions,
        )


def _manifest(folder: Path, name: str) -> AdapterManifest | None:
    """What a folder that is not loaded says of itself; loading it tells what is wrong where it cannot be read."""
    try:
        return parse_manifest(read_file(folder, MANIFEST_FILE, name, MAX_JSON_BYTES), name)
    except InvalidAdapter:
        return None
