"""A run's folder: what it is of, what it has found so far, and nobody else in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from engine.durable_files import write_file
from engine.errors import TrainingError

RUN_FILE, RESULT_FILE, GUARD_FILE = "run.json", "result.json", "guard.json"
# The folder of the main training.
TRAINING = "training"
_LOCK_FILE = ".lock"


class WorkFolder:
    """`DATA/tuning/NAME/`, held by one process. See `open_work_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> Any:
        """JSON of an earlier step; None where there is none that can be read."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, name: str, content: Any) -> None:
        """Keep JSON, whole or not at all. Raises: TrainingError when the disk refuses."""
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written ({error.strerror}). Free disk space.") from None

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON of `make`, which is called only where no earlier session of this run has kept it."""
        found = self.read(name)
        if found is None:
            found = make()
            self.write(name, found)
        return found


@contextmanager
def open_work_folder(path: Path, identity: Mapping[str, Any], *, restart: bool) -> Iterator[WorkFolder]:
    """Hold the folder of a run of `identity`: with what a stopped run of the same kind left there, or empty.

    What a run that came to its end left there gives way, and so does one that stopped before it trained. `restart`
    deletes a stopped run of any kind.
    Raises: TrainingError when another process is at work there, when a stopped run is of something else, and when the
    folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be made ({error.strerror}). Name another --data folder.") from None
    lock = FileLock(path / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(
            f"{path}: another `switchyard tune` is at work there. Wait for it, or use another --name."
        ) from None
    try:
        work = WorkFolder(path)
        found = work.read(RUN_FILE)
        asked = json.loads(json.dumps(identity))
        if found is None or restart or (path / RESULT_FILE).exists():
            _clear(path)
        elif found != asked:
            # A run that stopped before it trained has nothing that is worth asking about.
            if (path / TRAINING).exists():
                raise TrainingError(_difference(path, found, asked))
            _clear(path)
        work.write(RUN_FILE, identity)
        yield work
    finally:
        lock.release()


def _difference(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    differences = [
        f"{name} was {_short(found.get(name))} and is now {_short(asked.get(name))}"
        for name in sorted({*found, *asked})
        if found.get(name) != asked.get(name)
    ]
    return (
        f"{path} holds a stopped run of something else: {'; '.join(differences)}. Ask for what it was to go on with "
        "it, or delete it with --restart."
    )


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:37]}..." if len(text) > 40 else text


def _clear(path: Path) -> None:
    for each in path.iterdir():
        if each.name == _LOCK_FILE:
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
