"""Reading a snapshot file: nothing of it is believed before it is checked, nothing is unpacked to disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from pydantic import ValidationError

from engine.errors import InvalidRequest, SnapshotError
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.rows import check_vectors
from engine.retrieval.preparing import check_collection_name, check_document_id
from engine.retrieval.snapshots.format import (
    DOCUMENTS,
    MANIFEST,
    PARTS,
    READABLE_VERSIONS,
    TEXTS,
    VECTOR,
    VECTORS,
    Manifest,
    SnapshotDocument,
    computed_digest,
    sealed_digest,
)

_MAX_MANIFEST_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 28
_ROWS_PER_PIECE = 500
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


class SnapshotReader:
    """An open snapshot whose seal, format and manifest are right; its parts are checked while they are read."""

    def __init__(self, source: Path) -> None:
        """Raises: SnapshotError when the file is missing, damaged, foreign or of another format."""
        self._source = source
        try:
            self._file = source.open("rb")
        except OSError as error:
            raise SnapshotError(f"{source}: cannot be read ({error.strerror}). Name a snapshot file.") from None
        try:
            with self._read_errors():
                self._check_seal()
                self._archive = zipfile.ZipFile(self._file)
                self.manifest = self._read_manifest()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._archive.close()
        self._file.close()

    def documents(self) -> Iterator[SnapshotDocument]:
        """Every document, each checked; that all are there and unchanged is known at the end only."""
        num_documents, num_chunks = 0, 0
        for number, line in enumerate(self._lines(DOCUMENTS), start=1):
            with self._checking(f"{DOCUMENTS} line {number}"):
                document = SnapshotDocument.model_validate_json(line)
                check_document_id(document.id)
                if any(not chunk.start <= chunk.end <= len(document.text) for chunk in document.chunks):
                    raise ValueError("a chunk lies outside of its document's text")
            num_documents += 1
            num_chunks += len(document.chunks)
            yield document
        self._check_count("documents", num_documents, self.manifest.documents)
        self._check_count("chunks", num_chunks, self.manifest.chunks)

    def vectors(self) -> Iterator[tuple[list[str], Vectors]]:
        """Hashes of texts [n] with their vectors [n, E] float32, in pieces; checked as `documents` are."""
        with self._checking(TEXTS):
            texts = [json.loads(line) for line in self._lines(TEXTS)]
            if not all(isinstance(text, str) for text in texts) or len(set(texts)) != len(texts):
                raise ValueError("holds what is no hash, or one hash twice")
        self._check_count("texts", len(texts), self.manifest.texts)
        dim, first = self.manifest.encoder.dim, 0
        for piece in self._pieces(VECTORS, _ROWS_PER_PIECE * dim * VECTOR.itemsize):
            with self._checking(f"{VECTORS} from row {first}"):
                vectors = np.frombuffer(piece, VECTOR).reshape(-1, dim).astype(np.float32)
                check_vectors(vectors, dim)
            yield texts[first : first + len(vectors)], vectors
            first += len(vectors)

    def verify(self) -> Iterator[int]:
        """Read everything and raise SnapshotError for whatever is wrong; yields the number of documents so far."""
        ids: set[tuple[str, str]] = set()
        needed: set[str] = set()
        for number, document in enumerate(self.documents(), start=1):
            if (document.tenant, document.id) in ids:
                raise self._error(f"it holds document {document.id!r} twice")
            ids.add((document.tenant, document.id))
            needed |= {chunk.text_hash for chunk in document.chunks}
            yield number
        if needed != {text for texts, _ in self.vectors() for text in texts}:
            raise self._error("its chunks and its vectors are not of the same texts")

    def _check_seal(self) -> None:
        told = sealed_digest(self._file)
        if told is None:
            raise self._error("it is no Switchyard snapshot, or its end is missing")
        found = computed_digest(self._file)
        if told != found:
            raise self._error(f"its SHA-256 is {_short(found)}, its seal says {_short(told)}")

    def _read_manifest(self) -> Manifest:
        names = self._archive.namelist()
        if sorted(names) != sorted((MANIFEST, *PARTS)):
            raise self._error(f"it holds other files than a snapshot does: {ascii(names)[:200]}")
        if self._archive.getinfo(MANIFEST).file_size > _MAX_MANIFEST_BYTES:
            raise self._error(f"its manifest is larger than {_MAX_MANIFEST_BYTES} bytes")
        raw = self._archive.read(MANIFEST)
        with self._checking(MANIFEST):
            found = json.loads(raw)
            version = found.get("format_version") if isinstance(found, dict) else None
            if version not in READABLE_VERSIONS:
                raise SnapshotError(
                    f"{self._source}: the snapshot has format version {ascii(version)[:20]}, this program reads "
                    f"{' and '.join(map(str, READABLE_VERSIONS))}. Use the program that wrote it."
                )
            manifest = Manifest.model_validate_json(raw)
            check_collection_name(manifest.collection)
            if sorted(manifest.parts) != sorted(PARTS) or manifest.encoder.dim < 1:
                raise ValueError("describes other parts than a snapshot has, or vectors without a dimension")
        for name, part in manifest.parts.items():
            self._check_count(f"bytes of {name}", self._archive.getinfo(name).file_size, part.size_bytes)
        needed_bytes = manifest.texts * manifest.encoder.dim * VECTOR.itemsize
        if manifest.parts[VECTORS].size_bytes != needed_bytes:
            raise self._error(
                f"{manifest.texts} vectors of dimension {manifest.encoder.dim} take {needed_bytes} bytes, "
                f"{VECTORS} has {manifest.parts[VECTORS].size_bytes}"
            )
        return manifest

    def _lines(self, name: str) -> Iterator[bytes]:
        with self._part(name) as (part, digest):
            while line := part.readline(_MAX_LINE_BYTES):
                digest.update(line)
                yield line

    def _pieces(self, name: str, size_bytes: int) -> Iterator[bytes]:
        with self._part(name) as (part, digest):
            while piece := part.read(size_bytes):
                digest.update(piece)
                yield piece

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[tuple[IO[bytes], Any]]:
        digest = hashlib.sha256()
        with self._read_errors(), self._archive.open(name) as part:
            yield part, digest
        if digest.hexdigest() != self.manifest.parts[name].sha256:
            raise self._error(f"{name} has another SHA-256 than its manifest says")

    @contextlib.contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SnapshotError(f"{self._source}: cannot be read ({error.strerror}). Check the disk.") from None
        except _BROKEN as error:
            raise self._error(f"it cannot be read ({error})") from None

    @contextlib.contextmanager
    def _checking(self, where: str) -> Iterator[None]:
        try:
            yield
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            field = "".join(f"{part}: " for part in problem["loc"])
            raise self._error(f"{where}: {field}{problem['msg']}") from None
        except (ValueError, RecursionError, InvalidRequest) as error:
            raise self._error(f"{where}: {error}") from None

    def _check_count(self, what: str, found: int, told: int) -> None:
        if found != told:
            raise self._error(f"it holds {found} {what}, its manifest says {told}")

    def _error(self, what: str) -> SnapshotError:
        what = what.rstrip(".")
        return SnapshotError(f"{self._source}: {what}. Nothing was changed; copy the snapshot anew, or take another.")


def _short(digest: bytes) -> str:
    return digest[:12].decode("ascii", "backslashreplace") + "..."
