"""Memory of a server on this machine while it is under load."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from engine.errors import ConfigError


class Sample(NamedTuple):
    """Resident bytes of all processes of the server at a second of the wall clock."""

    unix_s: float
    rss_bytes: int


def server_pid(data: Path) -> int:
    """The process that serves this data folder.

    Raises: ConfigError where none does on this machine.
    """
    path = data / "server.json"
    try:
        pid = int(json.loads(path.read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: names no process. Give the data folder of a server on this machine.") from None
    if not psutil.pid_exists(pid):
        raise ConfigError(f"{path}: its process {pid} has ended. Give the data folder of a server that runs.")
    return pid


def tree_rss_bytes(pid: int) -> int:
    """Resident bytes of a process and all that it started; shared pages count once for each. 0 once it ended."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += int(process.memory_info().rss)
        except psutil.Error:
            continue
    return total


class MemoryWatch:
    """Samples memory every `every_s` in a thread of its own, from `with` to the end of the block."""

    def __init__(self, read: Callable[[], int], every_s: float = 1.0) -> None:
        self.samples: list[Sample] = []
        self._read = read
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while True:
            self.samples.append(Sample(time.time(), self._read()))
            if self._ended.wait(self._every_s):
                return
