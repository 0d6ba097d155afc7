"""The cache of models on disk: each one appears whole, by one rename, or not at all.

<cache>/models/<key>/            a complete model and its manifest, switchyard_model.json
<cache>/models/.staging/<key>/   a model in the making; only the holder of the lock below writes here
<cache>/models/.locks/<key>      file lock; the operating system frees it when its holder dies
<cache>/hashes/                  content hashes of local folders, kept so that they are computed once
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from engine.errors import ModelSourceError

MANIFEST = "switchyard_model.json"
MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_MB = 1_000_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Size in bytes and SHA-256 (hex) of one file of a model."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a cached model is. `revision` is the wheel's SHA-256 or the hub's commit; paths in `files` are relative."""

    source: str
    name: str
    digest: str
    revision: str
    files: dict[str, StoredFile]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def model_folder(cache: Path, key: str) -> Path:
    """Where the model of `key` lies once it is complete."""
    return cache / "models" / key


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete cached model; None when there is none or a file's size differs from it."""
    try:
        raw = json.loads((folder / MANIFEST).read_bytes())
        files = {name: StoredFile(**entry) for name, entry in raw.pop("files").items()}
        manifest = Manifest(**raw, files=files)
        for name, file in files.items():
            if (size := (folder / name).stat().st_size) != file.size:
                _log.warning("%s has %d bytes, not %d: the model is fetched again", folder / name, size, file.size)
                return None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("%s cannot be read (%s): the model is fetched again", folder / MANIFEST, error)
        return None
    return manifest


def cached_models(cache: Path) -> list[tuple[Path, Manifest]]:
    """Every complete model of the cache with its folder, by name."""
    folders = sorted(path for path in (cache / "models").glob("*") if not path.name.startswith("."))
    found = [(folder, manifest) for folder in folders if (manifest := read_manifest(folder)) is not None]
    return sorted(found, key=lambda item: item[1].name)


@contextmanager
def staging(cache: Path, key: str, *, on_wait: Callable[[], None]) -> Iterator[Path]:
    """Wait for the lock of `key`, then yield its empty staging folder; the folder is gone afterwards.

    `on_wait` is called once where another process holds the lock. Folders that killed processes left behind are
    removed first: one whose lock is free has no owner.
    """
    models = cache / "models"
    (models / ".locks").mkdir(parents=True, exist_ok=True)
    (models / ".staging").mkdir(exist_ok=True)
    with _acquire(models, key, on_wait):
        folder = models / ".staging" / key
        for leftover in (models / ".staging").iterdir():
            _remove_if_unowned(models, leftover, owned=key)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _acquire(models: Path, key: str, on_wait: Callable[[], None]) -> AcquireReturnProxy[FileLock]:
    lock = FileLock(models / ".locks" / key)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        return lock.acquire()


def _remove_if_unowned(models: Path, leftover: Path, owned: str) -> None:
    if leftover.name == owned:
        shutil.rmtree(leftover)
        return
    try:
        with FileLock(models / ".locks" / leftover.name, timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)
    except Timeout:
        pass


def publish(made: Path, target: Path, *, source: str, name: str, revision: str) -> Manifest:
    """Write the manifest of the model in `made`, flush everything to disk, and rename it to `target`.

    `made` lies in a staging folder, whose lock the caller holds. A broken model at `target` is replaced.
    """
    files = hash_files(made, model_files(made))
    manifest = Manifest(source=source, name=name, digest=digest_of(files), revision=revision, files=files)
    (made / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    for path in (made, *made.rglob("*")):
        _flush(path)
    if target.exists():
        target.rename(made.with_name("replaced"))
    made.rename(target)
    _flush(target.parent)
    return manifest


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def model_files(folder: Path) -> list[str]:
    """Relative paths of the files that make up the model: the top level and the modules of a sentence encoder.

    Other subfolders (training checkpoints, exports to other formats) are not part of it.
    """
    folders = [folder, *(folder / module for module in _module_folders(folder))]
    files = [path for each in folders if each.is_dir() for path in each.iterdir() if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in files if path.suffix in MODEL_SUFFIXES}
    return sorted(names - {MANIFEST})


def _module_folders(folder: Path) -> list[str]:
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
        paths = [str(module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [path for path in paths if path and is_confined(path)]


def is_confined(name: str) -> bool:
    """Whether a path from an archive or a listing stays inside the folder that it is joined to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in name


def hash_files(folder: Path, names: list[str]) -> dict[str, StoredFile]:
    """Read `names` below `folder` in full."""
    return {name: StoredFile((folder / name).stat().st_size, sha256_of(folder / name)) for name in names}


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(files: Mapping[str, StoredFile]) -> str:
    """SHA-256 (hex) over names and content hashes, so one model has one digest wherever it lies."""
    lines = "".join(f"{files[name].sha256}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def remembered_digest(cache: Path, folder: Path) -> str:
    """The digest of a local folder, from full content hashes.

    Content, because two fine-tunes of one base agree in every name, shape and size, and a modification time
    differs between machines. A file is read again only when its size or modification time changes; the hashes
    are kept in the cache where it is writable.
    """
    memo_path = cache / "hashes" / f"{hashlib.sha256(str(folder).encode()).hexdigest()}.json"
    memo = _read_memo(memo_path)
    files: dict[str, StoredFile] = {}
    updated: dict[str, list[Any]] = {}
    for name in model_files(folder):
        stat = (folder / name).stat()
        known = memo.get(name)
        version = [stat.st_size, stat.st_mtime_ns]
        if isinstance(known, list) and len(known) == 3 and known[:2] == version:
            sha256 = str(known[2])
        else:
            sha256 = sha256_of(folder / name)
        files[name] = StoredFile(stat.st_size, sha256)
        updated[name] = [*version, sha256]
    if updated != memo:
        _write_memo(memo_path, updated)
    return digest_of(files)


def _read_memo(path: Path) -> dict[str, Any]:
    try:
        memo = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _write_memo(path: Path, memo: Mapping[str, Any]) -> None:
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(memo), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        _log.info("%s cannot be written (%s): the folder is hashed again next time", path, error)


@contextmanager
def disk_space(folder: Path, num_bytes: int, what: str) -> Iterator[None]:
    """Run a step that writes about `num_bytes` below `folder` (0: not known).

    Raises: ModelSourceError with the need, before the step when it cannot fit and when it runs full midway.
    """
    free = shutil.disk_usage(folder).free
    need = (
        f"about {max(1.0, num_bytes / _MB):,.0f} MB"
        if num_bytes
        else f"more than the {free / _MB:,.0f} MB that were free"
    )
    message = (
        f"no space left in {folder.resolve()}: {what} needs {need}, {{free:,.0f}} MB are free. "
        "Free disk space, or set SWITCHYARD_CACHE to a folder on another disk."
    )
    if num_bytes > free:
        raise ModelSourceError(message.format(free=free / _MB))
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free
        raise ModelSourceError(message.format(free=free / _MB)) from error
