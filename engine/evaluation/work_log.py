"""What a long measurement has found so far: lines that are kept as they come, so that the same command goes on."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from engine.durable_files import sync_folder
from engine.errors import SwitchyardError

# A power cut loses what was found since; a killed process loses nothing.
_SYNC_S = 2.0


class WorkLog:
    """A file of JSON lines, held by one process; the first one says what it is of. See `open_work_log`."""

    def __init__(self, path: Path, file: BinaryIO, entries: list[dict[str, Any]]) -> None:
        self.path = path
        self.entries = entries
        self._file = file
        self._synced_at = time.monotonic()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep one object. Raises: SwitchyardError when the disk refuses."""
        with _said(self.path, "Free disk space; the same command goes on"):
            self._file.write(_line(entry))
            self._file.flush()
            if time.monotonic() - self._synced_at > _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced_at = time.monotonic()


@contextmanager
def open_work_log(path: Path, identity: Mapping[str, Any], *, restart: bool) -> Iterator[WorkLog]:
    """Hold the file of a measurement of `identity`, with the entries that a stopped one left there.

    A line that was cut short by a kill is dropped. `restart` begins anew whatever is there.
    Raises: SwitchyardError when another process holds it, when it is of something else (naming what differs), is
    damaged or cannot be written.
    """
    asked: dict[str, Any] = json.loads(json.dumps(identity))
    with _said(path, "Name a writable place"):
        file = path.open("a+b")
    with file:
        _hold(path, file)
        with _said(path, "Name a writable place"):
            kept = b"" if restart else _whole_lines(file)
        log = WorkLog(path, file, _entries(path, kept, asked) if kept else [])
        if not kept:
            with _said(path, "Free disk space"):
                file.truncate(0)
                sync_folder(path.parent)
            log.add({"_work": asked})
        yield log


@contextmanager
def _said(path: Path, fix: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SwitchyardError(f"{path}: cannot be written ({error.strerror}). {fix}.") from None


def _hold(path: Path, file: BinaryIO) -> None:
    try:
        # Gone with the process, however it ends.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SwitchyardError(
            f"{path}: another command is at work there. Wait for it, or name another --out."
        ) from None


def _whole_lines(file: BinaryIO) -> bytes:
    """The content up to its last whole line, and the file cut to it."""
    file.seek(0)
    content = file.read()
    size = content.rfind(b"\n") + 1
    if size < len(content):
        file.truncate(size)
    return content[:size]


def _entries(path: Path, content: bytes, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        first, *entries = [json.loads(line) for line in content.decode().splitlines()]
        found: dict[str, Any] = first["_work"]
    except (ValueError, KeyError, TypeError):
        raise SwitchyardError(
            f"{path}: is not what a stopped command left there. Begin anew with --restart, or name another --out."
        ) from None
    if found != asked:
        names = sorted({*found, *asked})
        differences = [
            f"{name} was {_short(found.get(name))} and is now {_short(asked.get(name))}"
            for name in names
            if found.get(name) != asked.get(name)
        ]
        raise SwitchyardError(
            f"{path} holds answers that were measured with something else: {'; '.join(differences)}. Ask for what it "
            "was to go on, or begin anew with --restart."
        )
    return entries


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ",".join(map(str, value))
    text = "none" if value is None else str(value)
    return f"{text[:37]}..." if len(text) > 40 else text
