"""Children to be killed: a server imports everything once and forks, so that each of them costs milliseconds."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from engine.errors import SwitchyardError

HERE = Path(__file__).parent


class Child:
    """One running task; it says lines until it ends."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout is not None
        self._lines = server.stdout
        self._pid = int(self._lines.readline().split()[1])
        self._is_ended = False

    def says(self) -> list[str] | None:
        """The words of its next line, None when it has ended."""
        if self._is_ended:
            return None
        words = self._lines.readline().split()
        self._is_ended = words[:1] == ["ended"]
        assert words, "the fork server died"
        return None if self._is_ended else words

    def kill(self) -> None:
        """SIGKILL, now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def rest(self) -> list[list[str]]:
        """Wait for its end; everything that it still said."""
        return list(iter(self.says, None))


class ForkServer:
    """Runs tasks of crash_tasks.py, one at a time, each in a fresh fork."""

    def __init__(self) -> None:
        # A fork keeps only the thread that called it, so there must be no other.
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", "import forking; forking.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **single, "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"},
        )

    def start(
        self,
        task: str,
        *,
        die_at_line: tuple[list[str], int] | None = None,
        max_file_bytes: int | None = None,
        **arguments: Any,
    ) -> Child:
        """
        Args:
            die_at_line: file names and n: SIGKILL before the n-th line that runs in these files.
            max_file_bytes: writing a file beyond this size fails.
        """
        request = {
            "task": task,
            "arguments": arguments,
            "die_at_line": die_at_line,
            "max_file_bytes": max_file_bytes,
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Child(self._server)

    def kills(self, task: str, files: list[str], *, step: int = 1, **arguments: Any) -> Iterator[int]:
        """Run a task again and again, killed at a later line each time, until it comes to its end; yields the line."""
        for line in range(1, 100_000, step):
            said = self.start(task, die_at_line=(files, line), **arguments).rest()
            assert said in ([], [["finished"]]), said
            if said:
                return
            yield line

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


def say(*words: object) -> None:
    """One line to whoever holds the Child; a line is written whole or not at all."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def serve() -> None:
    """The fork server's loop: a request per line."""
    import crash_tasks

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request, crash_tasks.TASKS[request["task"]])
        os.waitpid(pid, 0)
        say("ended")


def _run(request: dict[str, Any], task: Any) -> None:
    try:
        say("pid", os.getpid())
        if request["die_at_line"] is not None:
            _die_at_line(*request["die_at_line"])
        if request["max_file_bytes"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_file_bytes"],) * 2)
        task(**request["arguments"])
        say("finished")
    except SwitchyardError as error:
        say("refused", type(error).__name__)
    except BaseException:
        traceback.print_exc()
        say("failed")
    finally:
        os._exit(0)


def _die_at_line(files: list[str], number: int) -> None:
    remaining = number

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        # Called for each function that runs, so it must be quick.
        return count if frame.f_code.co_filename.rpartition("/")[2] in files else None

    def count(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal remaining
        remaining -= event == "line"
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    threading.settrace(enter)
    sys.settrace(enter)
