"""Writing into the adapters folder so that a crash leaves what was before or what is after, and nothing in between."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.durable_files import sync_folder
from engine.errors import InvalidAdapter
from engine.generation.adapters.content import content_digest, read_contents
from engine.generation.adapters.inputs import read_inputs
from engine.generation.adapters.manifest import INPUTS_FILE, MANIFEST_FILE, parse_manifest

SCRATCH_PREFIX = ".new-"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is created where needed, against every other process and thread that locks it.

    The lock is on the folder itself and ends with its holder, so nothing is left to clean up. Raises: OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def copy_files(source: Path, home: Path) -> Path:
    """Copy the regular files of `source` into a new scratch folder in `home`, durably. Returns it. Raises: OSError.

    Hidden files, links and folders are left out.
    """
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=home))
    try:
        scratch.chmod(0o755)
        for file in sorted(source.iterdir()):
            if file.name.startswith(".") or file.is_symlink() or not file.is_file():
                continue
            with file.open("rb") as opened, (scratch / file.name).open("wb") as copy:
                shutil.copyfileobj(opened, copy)
                copy.flush()
                os.fsync(copy.fileno())
        sync_folder(scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return scratch


def folder_digest(folder: Path, name: str, *, needs_inputs: bool = True) -> str:
    """The digest of an adapter's files.

    Args:
        needs_inputs: whether training inputs have to be there where the manifest names them. To answer, they do not.
    Raises: InvalidAdapter where a file is missing, or the manifest or the training inputs that it names are broken.
    """
    contents = read_contents(folder, name)
    if MANIFEST_FILE in contents and (needs_inputs or (folder / INPUTS_FILE).exists()):
        read_inputs(folder, parse_manifest(contents[MANIFEST_FILE], name), name)
    return content_digest(contents)


def holds(folder: Path, digest: str, name: str, *, needs_inputs: bool = True) -> bool:
    """Whether a folder is there and still as the adapter of that digest was added."""
    try:
        return folder.is_dir() and folder_digest(folder, name, needs_inputs=needs_inputs) == digest
    except InvalidAdapter:
        return False
