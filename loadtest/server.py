"""A `switchyard serve` of a benchmark's own, ended with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.errors import SwitchyardError
from loadtest.ports import free_port

SWITCHYARD = Path(sys.executable).with_name("switchyard")
_START_TIMEOUT_S = 120


@contextlib.contextmanager
def running_server(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start a server with its state below `folder` and yield its URL once it answers.

    Args:
        options: more of `switchyard serve`, such as `--set KEY=VALUE`.
        environment: variables beside those of this process.
    Raises: SwitchyardError with the end of its log where it does not start.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [SWITCHYARD, "serve", "--port", str(port), "--data", str(folder / "data"), *options],
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while f"ready {url}" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SwitchyardError(f"the server did not start: {log.read_text().strip()[-500:]}")
            time.sleep(0.2)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
