"""Where adapters are kept, as whoever serves them sees it: a folder, or a database with a folder as its cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from engine.generation.adapters.versions import AdapterVersions


class AdapterCatalogue(Protocol):
    """Adapters by name, their versions, and which of them are to be served. AdapterRegistry says more of each method.

    `folder` has a folder for each adapter, and in it one for each version that is here.
    """

    folder: Path

    def names(self) -> list[str]:
        """What could be loaded."""

    def versions(self, name: str) -> AdapterVersions:
        """The versions of an adapter."""

    def locate(self, name: str, path: str | None = None, version: str | None = None) -> Path:
        """The folder with the files of an adapter, which are there and whole when this returns."""

    def add(self, name: str, folder: Path, *, digest: str | None = None) -> str:
        """Keep the files in a folder as the current version of an adapter. Returns it."""

    def use(self, name: str, version: str) -> str:
        """Make a version the current one."""

    def remove(self, name: str) -> None:
        """Delete an adapter with every version."""

    def served(self) -> dict[str, Path]:
        """Folders by name of what is to be served."""

    def set_served(self, name: str, folder: Path | None) -> None:
        """Note what is to be served as `name`, None: nothing."""


class FileChange(Protocol):
    """One change of a FileStore: all of it is kept, or nothing."""

    def record(self, kind: str, name: str) -> Any:
        """The body of a record, None where there is none."""

    def put(self, kind: str, name: str, body: Mapping[str, Any], digests: list[str] = ...) -> None:
        """Write a record, which names contents by their SHA-256."""

    def drop(self, kind: str, name: str) -> None:
        """Delete a record, and what no other one names."""

    def upload(self, path: Path) -> str:
        """Keep the content of a file; returns its SHA-256."""


class FileStore(Protocol):
    """Records with files, which several machines see: the database of the store has them."""

    def records(self, kind: str) -> dict[str, Any]:
        """Bodies of the records of a kind, by name."""

    def changing(self) -> AbstractContextManager[FileChange]:
        """One change at a time, over all machines."""

    def content(self, digest: str) -> Iterator[bytes]:
        """The pieces of a content; to be used once all of them came without an error."""
