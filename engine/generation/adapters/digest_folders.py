"""Adapters' files in folders named by the digest of what they hold: written whole or not at all, and never changed.

    <folder>/<64 digits>/    the files of one adapter

Several processes may use one folder; whoever writes holds its lock.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from engine.durable_files import sync_folder
from engine.errors import ComponentUnavailable, InvalidAdapter
from engine.generation.adapters.config_file import CONFIG_FILE
from engine.generation.adapters.content import FILES as WEIGHED_FILES
from engine.generation.adapters.content import MAX_WEIGHTS_BYTES, WEIGHTS_FILE
from engine.generation.adapters.manifest import INPUTS_FILE
from engine.generation.adapters.storing import SCRATCH_PREFIX, folder_digest, holds, locked

PIECE_BYTES = 4 << 20
# The manifest, which counts for the digest, has the digest of the training inputs.
FILES = (*WEIGHED_FILES, INPUTS_FILE)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class PieceSource(Protocol):
    """Gives the files of an adapter that somebody else has. Raises: ComponentUnavailable where it has not."""

    def sizes(self, digest: str) -> dict[str, int]:
        """Bytes of each file."""

    def piece(self, digest: str, file: str, offset: int) -> bytes:
        """At most PIECE_BYTES of a file, from `offset`."""


class DigestFolders:
    """A PieceSource. Beside those that are in use, the `num_kept` folders used last stay."""

    def __init__(self, folder: Path, *, num_kept: int = 8) -> None:
        self._folder = folder
        self._num_kept = num_kept

    def find(self, digest: str) -> Path | None:
        """The folder of that digest, None where it is not here. It counts as used now."""
        path = self._path(digest)
        with suppress(OSError):
            os.utime(path)
        return path if path.is_dir() else None

    def is_intact(self, digest: str) -> bool:
        """Whether its files are here and still what they were."""
        return holds(self._path(digest), digest, digest, needs_inputs=False)

    def add(self, digest: str, contents: Mapping[str, bytes]) -> Path:
        """Keep the contents of files by name, whose digest that is. Raises: OSError."""
        with locked(self._folder):
            if not self.is_intact(digest):
                with self._scratch(digest) as scratch:
                    for file, content in contents.items():
                        _write(scratch / file, [content])
        return self._path(digest)

    def fetch(self, digest: str, source: PieceSource) -> Path:
        """Copy what `source` has of that digest, unless it is here and intact.

        Raises: ComponentUnavailable where the source fails or what it gave is not that adapter; OSError.
        """
        with locked(self._folder):
            if not self.is_intact(digest):
                with self._scratch(digest) as scratch:
                    for file, size in _checked(source.sizes(digest), digest).items():
                        _write(scratch / file, _pieces(source, digest, file, size))
                    try:
                        found = folder_digest(scratch, digest, needs_inputs=False)
                    except InvalidAdapter as error:
                        found = str(error)
                    if found != digest:
                        raise _damaged(digest, f"what came has the digest {found[:12]}...")
        return self._path(digest)

    def sizes(self, digest: str) -> dict[str, int]:
        """See PieceSource."""
        folder = self.find(digest)
        if folder is None:
            raise ComponentUnavailable("generator", f"the files of adapter digest {digest[:12]}... are gone")
        return {file: (folder / file).stat().st_size for file in FILES if (folder / file).is_file()}

    def piece(self, digest: str, file: str, offset: int) -> bytes:
        """See PieceSource. Raises: InvalidAdapter for a name that none of an adapter's files has."""
        if file not in FILES:
            raise InvalidAdapter(digest[:12], f"{file[:80]!r} is none of its files: {', '.join(FILES)}")
        try:
            with (self._path(digest) / file).open("rb") as opened:
                opened.seek(offset)
                return opened.read(PIECE_BYTES)
        except OSError as error:
            why = f"the files of adapter digest {digest[:12]}... are gone ({error.strerror})"
            raise ComponentUnavailable("generator", why) from None

    def remove(self, digest: str) -> None:
        """Delete a folder that is damaged. Raises: OSError."""
        with locked(self._folder):
            shutil.rmtree(self._path(digest), ignore_errors=True)

    def prune(self, in_use: Collection[str]) -> None:
        """Delete what neither is in use nor was used lately, and what interrupted writes left. Raises: OSError."""
        if not self._folder.is_dir():
            return
        with locked(self._folder):
            for scratch in self._folder.glob(f"{SCRATCH_PREFIX}*"):
                shutil.rmtree(scratch, ignore_errors=True)
            idle = [each for each in self._folder.iterdir() if _DIGEST.fullmatch(each.name) and each.name not in in_use]
            idle.sort(key=lambda each: each.stat().st_mtime, reverse=True)
            for each in idle[self._num_kept :]:
                shutil.rmtree(each, ignore_errors=True)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidAdapter(digest[:80], "its digest must have 64 digits of 0-9 and a-f")
        return self._folder / digest

    @contextmanager
    def _scratch(self, digest: str) -> Iterator[Path]:
        """A new folder, which takes its place once it is complete. Called under the lock."""
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=self._folder))
        try:
            scratch.chmod(0o755)
            yield scratch
            sync_folder(scratch)
            shutil.rmtree(self._path(digest), ignore_errors=True)
            scratch.rename(self._path(digest))
            sync_folder(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _checked(sizes: Mapping[str, int], digest: str) -> Mapping[str, int]:
    """Names become paths here, and sizes room on a disk."""
    for file, size in sizes.items():
        if file not in FILES:
            raise _damaged(digest, f"{file[:80]!r} is none of an adapter's files")
        if not 0 <= size <= MAX_WEIGHTS_BYTES:
            raise _damaged(digest, f"{file} has {size} bytes; at most {MAX_WEIGHTS_BYTES} are taken")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if file not in sizes:
            raise _damaged(digest, f"{file} is missing")
    return sizes


def _pieces(source: PieceSource, digest: str, file: str, size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size:
        piece = source.piece(digest, file, offset)
        offset += len(piece)
        if not piece or offset > size:
            raise _damaged(digest, f"{file} has another size than the {size} bytes announced")
        yield piece


def _write(path: Path, pieces: Iterator[bytes] | list[bytes]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _damaged(digest: str, why: str) -> ComponentUnavailable:
    return ComponentUnavailable("generator", f"adapter digest {digest[:12]}... could not be copied: {why}")
