"""Answers in a file, each as it came, so that a comparison that was stopped goes on.

Every answer is kept under a digest of what it depends on: weights, prompt, limits, version of the knowledge base.
So what has changed meanwhile is asked anew, and what has not is never asked twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from engine.errors import SwitchyardError
from engine.evaluation.asking import Answer, ShownPassage

ANSWERS_FILE = "answers.jsonl"
_LOCK_FILE = ".compare.lock"
_SYNC_S = 5.0


def key_of(**parts: Any) -> str:
    """The digest of what an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class KeptAnswers:
    """Answers by their keys. See `open_answers`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Answer] = {}
        self._versions: dict[int, int] = {}
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._read()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Answer | None:
        """The answer of that key."""
        return self._found.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer. Raises: SwitchyardError when the disk refuses."""
        self._found[key] = answer
        self._write({"key": key, "answer": asdict(answer)})

    def same_version(self, new: int, old: int) -> None:
        """What version `new` of the knowledge base holds is what `old` held."""
        if self.version(old) != self.version(new):
            self._versions[new] = self.version(old)
            self._write({"version": new, "same_as": self._versions[new]})

    def version(self, version: int) -> int:
        """The first version that held the same."""
        return self._versions.get(version, version)

    def close(self) -> None:
        """Make all of it durable."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _read(self) -> None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise SwitchyardError(f"{self._path}: cannot be read ({error.strerror}). Name another --out.") from None
        for line in content.splitlines():
            # The end of a line that a killed run was writing is no answer.
            try:
                row = json.loads(line)
                if "key" in row:
                    self._found[str(row["key"])] = _answer(row["answer"])
                else:
                    self._versions[int(row["version"])] = int(row["same_as"])
            except (ValueError, KeyError, TypeError):
                continue

    def _write(self, row: dict[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("ab")
                # A new line after one that broke off.
                self._file.write(b"\n" if self._path.stat().st_size else b"")
            self._file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise SwitchyardError(
                f"{self._path}: cannot be written ({error.strerror}). Free disk space; the same command goes on."
            ) from None


@contextmanager
def open_answers(folder: Path, *, restart: bool = False) -> Iterator[KeptAnswers]:
    """The answers that are kept in `folder`, held by one process.

    `restart` forgets those of earlier runs. Raises: SwitchyardError where another process is at work there, or the
    folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SwitchyardError(f"{folder}: cannot be made ({error.strerror}). Name another --out.") from None
    lock = FileLock(folder / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SwitchyardError(
            f"{folder}: another `switchyard compare` is at work there. Wait for it, or name another --out."
        ) from None
    try:
        if restart:
            (folder / ANSWERS_FILE).unlink(missing_ok=True)
        kept = KeptAnswers(folder / ANSWERS_FILE)
        try:
            yield kept
        finally:
            kept.close()
    finally:
        lock.release()


def _answer(content: dict[str, Any]) -> Answer:
    known = dict(content)
    known["passages"] = tuple(ShownPassage(**each) for each in known["passages"])
    known["citations"] = tuple(known["citations"])
    return Answer(**known)
