"""Starting `switchyard serve` as a user does, and ending it with everything it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.ports import free_port

SWITCHYARD = Path(sys.executable).with_name("switchyard")
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15


@dataclass(frozen=True)
class Server:
    """A running `switchyard serve`."""

    url: str
    data: Path
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[psutil.Process]:
        """Itself and everything it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self) -> list[psutil.Process]:
        """Press Ctrl-C in its terminal, wait, end what is left; returns what had to be ended."""
        started = self.processes() if self.process.poll() is None else []
        if started:
            os.killpg(self.process.pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while left := [process for process in started if is_alive(process)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for process in left:
            process.kill()
        self.process.wait(timeout=5)
        return left


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended and waits to be collected by its parent does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_server(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Server:
    """Start `switchyard serve` with its state below `folder`, and wait until it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "server.log"
    command = [str(SWITCHYARD), "serve", "--port", str(port), "--data", str(folder / "data"), *options]
    with log.open("wb") as output:
        # A session of its own stands for the terminal that Ctrl-C is pressed in.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
    server = Server(f"http://127.0.0.1:{port}", folder / "data", process, log)
    deadline = time.monotonic() + START_TIMEOUT_S
    while f"ready {server.url}" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.1)
    return server
