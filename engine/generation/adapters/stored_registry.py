"""Adapters in a database that several machines share; a folder on this one caches what is used here.

    .stored/<name>/<12 digits>/    the files of a version, fetched by their digests, checked, and moved into place whole

The adapters folder itself is where people put files: what lies there is moved into the database when it is loaded, and
when a server starts.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from engine.errors import InvalidAdapter, StoreUnavailable, SwitchyardError, UnknownAdapter
from engine.generation.adapters.catalogue import FileChange, FileStore
from engine.generation.adapters.registry import AdapterRegistry, check_name
from engine.generation.adapters.storing import folder_digest
from engine.generation.adapters.version_cache import VersionCache
from engine.generation.adapters.versions import AdapterVersion, AdapterVersions

CACHE_FOLDER = ".stored"
_ADAPTER, _SERVED = "adapter", "served adapter"

_log = logging.getLogger(__name__)


class StoredRegistry:
    """An AdapterCatalogue. Beside what AdapterRegistry raises, every method raises StoreUnavailable."""

    def __init__(self, files: FileStore, inbox: AdapterRegistry) -> None:
        """`inbox` is the adapters folder of this machine's data folder."""
        self._files = files
        self._inbox = inbox
        self.folder = inbox.folder / CACHE_FOLDER
        self._cache = VersionCache(self.folder)
        self._has_looked = False  # at what the folder says is to be served

    def names(self) -> list[str]:
        """What the database has, and what lies in the folder of this machine."""
        return sorted({*self._files.records(_ADAPTER), *self._inbox.names()})

    def versions(self, name: str) -> AdapterVersions:
        """See AdapterCatalogue."""
        check_name(name)
        body = self._files.records(_ADAPTER).get(name)
        return self._inbox.versions(name) if body is None else _versions(body)

    def locate(self, name: str, path: str | None = None, version: str | None = None) -> Path:
        """See AdapterCatalogue. With `path`, what lies there becomes a version of `name`: it could not be served by
        another machine otherwise.
        """
        check_name(name)
        if path is None:
            self._adopt(name)
            body = self._files.records(_ADAPTER).get(name)
            if body is None:
                raise UnknownAdapter(name, self.names())
            known = _versions(body)
            return self._cached(name, known.find(name, str(known.current) if version is None else version))
        place = self._cache.place(self.folder / path)
        if place is not None and place[0] in self._files.records(_ADAPTER):
            return self._cached(*place)
        return self._cached(name, self._store(name, self._inbox.locate(name, path)))

    def add(self, name: str, folder: Path, *, digest: str | None = None) -> str:
        """See AdapterRegistry."""
        check_name(name)
        if not folder.resolve().is_relative_to((self._inbox.folder / name).resolve()):
            self._adopt(name)
        return self._store(name, folder, digest)

    def use(self, name: str, version: str) -> str:
        """See AdapterRegistry."""
        check_name(name)
        with self._files.changing() as change:
            body = change.record(_ADAPTER, name)
            if body is None:
                raise UnknownAdapter(name, self.names())
            known = _versions(body)
            found = known.find(name, version)
            _put(change, name, known.using(found), body["files"])
            served = change.record(_SERVED, name)
            if served is not None and served["adapter"] == name:
                change.put(_SERVED, name, {"adapter": name, "version": found})
        return found

    def remove(self, name: str) -> None:
        """See AdapterRegistry."""
        check_name(name)
        is_in_folder = name in self._inbox.names()
        with self._files.changing() as change:
            if change.record(_ADAPTER, name) is None and not is_in_folder:
                raise UnknownAdapter(name, self.names())
            change.drop(_ADAPTER, name)
        if is_in_folder:
            self._inbox.remove(name)
        self._cache.remove(name)

    def served(self) -> dict[str, Path]:
        """See AdapterCatalogue. What the folder of this machine says is moved into the database first."""
        if not self._has_looked:
            self._adopt_served()
            self._has_looked = True
        found = self._files.records(_SERVED)
        return {name: self.folder / body["adapter"] / body["version"] for name, body in found.items()}

    def set_served(self, name: str, folder: Path | None) -> None:
        """See AdapterCatalogue; `folder` is one that `locate` gave."""
        place = None if folder is None else self._cache.place(folder)
        with self._files.changing() as change:
            if place is None:
                change.drop(_SERVED, name)
            else:
                change.put(_SERVED, name, {"adapter": place[0], "version": place[1]})

    def _cached(self, name: str, version: str) -> Path:
        """The folder of a version on this machine."""
        body = self._files.records(_ADAPTER)[name]
        known = _versions(body)
        wanted = known.named(name, version)
        return self._cache.fetch(name, wanted, body["files"][wanted.version], self._files, known.names())

    def _store(self, name: str, folder: Path, digest: str | None = None) -> str:
        """Make the files in a folder the newest version. Returns it."""
        with self._cache.copied(name, folder) as (copy, found):
            if digest is not None and digest != found:
                raise InvalidAdapter(name, f"its files have the digest {found}, not {digest[:80]}; save them again")
            added = AdapterVersion(version=AdapterVersion.name_of(found), digest=found, added_at=time.time())
            with self._files.changing() as change:
                body = change.record(_ADAPTER, name) or {"versions": AdapterVersions().model_dump(), "files": {}}
                served = self._files.records(_SERVED).values()
                in_use = {each["version"] for each in served if each["adapter"] == name}
                known = _versions(body).adding(added).keeping(in_use)
                files = {each.name: change.upload(each) for each in sorted(copy.iterdir())}
                _put(change, name, known, body["files"] | {added.version: files})
        return added.version

    def _adopt(self, name: str) -> None:
        """Move what lies in this machine's folder into the database."""
        if name not in self._inbox.names():
            return
        body = self._files.records(_ADAPTER).get(name)
        known = set() if body is None else {each.digest for each in _versions(body).versions}
        lying = self._inbox.versions(name)
        # A link stays where it is, so only what is new there was put there since.
        is_link = (self._inbox.folder / name).is_symlink()
        if not lying.versions:
            folder = self._inbox.locate(name)
            if not is_link or folder_digest(folder, name) not in known:
                self._store(name, folder)
        new = [each for each in lying.versions if each.digest not in known]
        for each in new:
            try:
                self._store(name, self._inbox.locate(name, version=each.version), each.digest)
            except InvalidAdapter as error:
                if each.version == lying.current:
                    raise
                _log.warning("version %s is left out: %s", each.version, error)
        if lying.current is not None and (new or not is_link):
            self.use(name, lying.current)
        if not is_link:
            self._inbox.remove(name)

    def _adopt_served(self) -> None:
        stored = self._files.records(_SERVED)
        for name, folder in self._inbox.served().items():
            try:
                if name not in stored:
                    self._adopt_one(name, folder)
                self._inbox.set_served(name, None)
            except StoreUnavailable:
                raise
            except SwitchyardError as error:
                _log.warning("%s", error)

    def _adopt_one(self, name: str, folder: Path) -> None:
        version = AdapterVersion.name_of(folder_digest(folder, name))
        adapter = name
        if folder.is_relative_to(self._inbox.folder):
            adapter = folder.relative_to(self._inbox.folder).parts[0]
            self._adopt(adapter)
        else:
            self._store(name, folder)
        self.set_served(name, self.folder / adapter / version)


def _versions(body: Any) -> AdapterVersions:
    return AdapterVersions.model_validate(body["versions"])


def _put(change: FileChange, name: str, known: AdapterVersions, files: dict[str, dict[str, str]]) -> None:
    """Write an adapter's record, with the files of the versions that it lists."""
    kept = {version: files[version] for version in known.names()}
    contents = sorted({content for each in kept.values() for content in each.values()})
    change.put(_ADAPTER, name, {"versions": known.model_dump(), "files": kept}, contents)
