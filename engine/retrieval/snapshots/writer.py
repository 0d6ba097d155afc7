"""Writing a snapshot file: under a temporary name until all of it is durable."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.durable_files import move_into_place
from engine.errors import SnapshotError, StorageFull
from engine.retrieval.snapshots.format import (
    DIGEST_BYTES,
    FORMAT_VERSION,
    MANIFEST,
    SEAL_PREFIX,
    VECTORS,
    Manifest,
    Part,
    computed_digest,
    sealed_digest,
)

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class SnapshotWriter:
    """A context manager: `add` each part, then `seal` puts the file in place of `target`; else it is removed."""

    def __init__(self, target: Path) -> None:
        """Raises: SnapshotError when `target` is something else than a snapshot."""
        if target.exists() and not _is_snapshot(target):
            raise SnapshotError(f"{target} exists and is no snapshot; it is left alone. Name another file.")
        self._target = target
        self._partial = target.with_name(f"{target.name}.partial")
        self._parts: dict[str, Part] = {}

    def __enter__(self) -> SnapshotWriter:
        with self._write_errors():
            self._file = self._partial.open("w+b")
        self._archive = zipfile.ZipFile(self._file, "w")
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        # On a full disk closing fails as well; the error that says so is under way already.
        with contextlib.suppress(OSError, ValueError):
            self._archive.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write one part. Raises: StorageFull; SnapshotError when the file cannot be written."""
        digest, size_bytes = hashlib.sha256(), 0
        with self._write_errors(), self._archive.open(_entry(name), "w", force_zip64=True) as part:
            for piece in pieces:
                part.write(piece)
                digest.update(piece)
                size_bytes += len(piece)
        self._parts[name] = Part(size_bytes=size_bytes, sha256=digest.hexdigest())

    def seal(self, **described: Any) -> Manifest:
        """Add the manifest and the seal, and give the file its name once all of it is on disk.

        Args:
            described: the fields of the Manifest but for format, time and parts.
        Raises: as `add`.
        """
        manifest = Manifest(format_version=FORMAT_VERSION, created_at=time.time(), parts=self._parts, **described)
        with self._write_errors():
            self._archive.writestr(_entry(MANIFEST), manifest.model_dump_json(indent=2))
            self._archive.comment = SEAL_PREFIX + b"0" * DIGEST_BYTES
            self._archive.close()
            digest = computed_digest(self._file)
            self._file.seek(-DIGEST_BYTES, 2)
            self._file.write(digest)
            self._file.close()
            move_into_place(self._partial, self._target)
        return manifest

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise StorageFull(str(self._target)) from None
            raise SnapshotError(
                f"{self._target}: cannot be written ({error.strerror}). Name a file in a folder that can be."
            ) from None


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    # Vectors look like noise to a compressor.
    entry.compress_type = zipfile.ZIP_STORED if name == VECTORS else zipfile.ZIP_DEFLATED
    return entry


def _is_snapshot(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return sealed_digest(file) is not None
    except OSError:
        return False
