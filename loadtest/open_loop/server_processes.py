"""Memory and processor time of the processes of a server on this machine while it is under load."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from engine.errors import ConfigError


class Usage(NamedTuple):
    """Of one process: its name, resident bytes, and processor time since it began, in seconds."""

    name: str
    rss_bytes: int
    cpu_s: float


class Sample(NamedTuple):
    """The processes of the server, by id, at a second of the wall clock; `machine_cpu_s` is what all that run on the
    machine have used.
    """

    unix_s: float
    processes: Mapping[int, Usage]
    machine_cpu_s: float = 0.0

    @property
    def rss_bytes(self) -> int:
        """Of all of them; shared pages count once for each."""
        return sum(each.rss_bytes for each in self.processes.values())


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


def sample_tree(pid: int) -> Sample:
    """A process and all that it started; none once it has ended."""
    busy = psutil.cpu_times()
    machine_cpu_s = sum(busy) - busy.idle - getattr(busy, "iowait", 0.0)
    found: dict[int, Usage] = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        processes = []
    for process in processes:
        try:
            with process.oneshot():
                cpu = process.cpu_times()
                found[process.pid] = Usage(_name(process), int(process.memory_info().rss), cpu.user + cpu.system)
        except psutil.Error:
            continue
    return Sample(time.time(), found, machine_cpu_s)


def _name(process: psutil.Process) -> str:
    """What a replica of Ray Serve, or a process of Ray, is there for; else the program."""
    title = (process.cmdline() or [""])[0]
    if title.startswith("ray::"):
        # ray::ServeReplica:switchyard:Generator.answer, while it answers
        return re.split(r"[:.]", title.removeprefix("ray::ServeReplica:switchyard:").removeprefix("ray::"))[0]
    return str(process.name())


def used_between(samples: Sequence[Sample], since_unix_s: float, until_unix_s: float) -> dict[str, dict[str, float]]:
    """Of each process of the server, by name and the busiest first: cores that it used, MiB at the end; at last what
    everything else on the machine used, the sender included.

    Empty where the server was not seen twice in that time.
    """
    inside = [each for each in samples if since_unix_s <= each.unix_s <= until_unix_s and each.processes]
    if len(inside) < 2:
        return {}
    first, last = inside[0], inside[-1]
    seconds = last.unix_s - first.unix_s
    cores: defaultdict[str, float] = defaultdict(float)
    mib: defaultdict[str, float] = defaultdict(float)
    for pid, usage in last.processes.items():
        before = first.processes.get(pid)
        cores[usage.name] += (usage.cpu_s - (before.cpu_s if before else 0.0)) / seconds
        mib[usage.name] += usage.rss_bytes / 2**20
    busiest = sorted(cores, key=lambda name: -cores[name])
    found: dict[str, dict[str, float]] = {
        name: {"cores": round(cores[name], 3), "mib": round(mib[name])} for name in busiest
    }
    others = (last.machine_cpu_s - first.machine_cpu_s) / seconds - sum(cores.values())
    return found | {"everything else": {"cores": round(others, 3)}}


class ServerWatch:
    """Samples every `every_s` in a thread of its own, from `with` to the end of the block."""

    def __init__(self, read: Callable[[], Sample], every_s: float = 1.0) -> None:
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
            self.samples.append(self._read())
            if self._ended.wait(self._every_s):
                return
