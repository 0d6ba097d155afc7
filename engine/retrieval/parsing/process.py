"""Parsers in processes of their own, so that a file which hangs, crashes or swallows memory costs no more than one."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.errors import ComponentUnavailable, UnparsableDocument
from engine.retrieval.parsing.limits import IDLE_S, OUT_OF_MEMORY, ParsingLimits
from engine.retrieval.parsing.sections import Section
from engine.retrieval.parsing.text import ParsedDocument

_COMMAND = (sys.executable, "-m", "engine.retrieval.parsing.worker")
# `-m` looks in the working directory first, so that a folder of the user's named `engine` cannot come before ours.
_ROOT = Path(__file__).parents[3]
# No key or password of the server's environment is within reach of a parser.
_ENVIRONMENT = frozenset("PATH PYTHONPATH LD_LIBRARY_PATH DYLD_LIBRARY_PATH HOME LANG LC_ALL TMPDIR SYSTEMROOT".split())
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_START_TIMEOUT_S = 60.0
_WAIT_S = 60.0
# Bounds what leaks of a parser can add up to.
_MAX_DOCUMENTS = 200


class ParserPool:
    """At most `size` workers, started when needed and used again. Thread-safe."""

    def __init__(
        self, *, size: int = 2, limits: ParsingLimits | None = None, command: Sequence[str] = _COMMAND
    ) -> None:
        self._size = size
        self._limits = limits or ParsingLimits()
        self._command = command
        self._slots = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def parse(self, parser: str, body: bytes) -> ParsedDocument:
        """Run the parser of this name (`worker.PARSERS`) over the bytes.

        Raises: UnparsableDocument, also where the parser crashes or runs into a limit; ComponentUnavailable when no
            worker becomes free or none starts.
        """
        if not self._slots.acquire(timeout=_WAIT_S):
            raise ComponentUnavailable("document parser", f"all {self._size} of its processes are busy", 10)
        try:
            worker = self._take_idle()
            if worker is not None:
                # A worker that was used before may have died of an earlier file, so its death proves nothing.
                with suppress(_WorkerDied):
                    return self._run(worker, parser, body)
            try:
                return self._run(_Worker(self._command, self._limits), parser, body)
            except _WorkerDied as error:
                raise UnparsableDocument(self._describe(error), param="body") from None
        finally:
            self._slots.release()

    def close(self) -> None:
        """End the idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _run(self, worker: _Worker, parser: str, body: bytes) -> ParsedDocument:
        try:
            answer = worker.ask(parser, body)
        except BaseException:
            worker.close()
            raise
        if worker.num_documents < _MAX_DOCUMENTS:
            with self._lock:
                self._idle.append(worker)
        else:
            worker.close()
        if "error" in answer:
            raise UnparsableDocument(answer["error"], param="body")
        sections = tuple(Section(start, tuple(path)) for start, path in answer["sections"])
        return ParsedDocument(answer["text"], answer["title"], sections, answer["is_markdown"])

    def _take_idle(self) -> _Worker | None:
        """The worker used last that is still there; the others, where they have idled long, are ended."""
        with self._lock:
            spent = [worker for worker in self._idle if worker.is_spent()]
            self._idle = [worker for worker in self._idle if worker not in spent]
            taken = self._idle.pop() if self._idle else None
        for worker in spent:
            worker.close()
        return taken

    def _describe(self, died: _WorkerDied) -> str:
        if died.status == OUT_OF_MEMORY:
            return (
                f"parsing needs more than {self._limits.max_memory_bytes // 2**20} MiB of memory, as a decompression "
                "bomb does. Split the file, or send its text as text/plain."
            )
        return (
            f"the parser died of this file (exit status {died.status}), so it is damaged or made to do harm. "
            "Open it in its own program and save it again, or send its text as text/plain."
        )


class _WorkerDied(Exception):
    """The process ended before it had answered; `status` is its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Worker:
    """One process that parses one document at a time."""

    def __init__(self, command: Sequence[str], limits: ParsingLimits) -> None:
        """Start it and wait until it listens. Raises: ComponentUnavailable."""
        self.num_documents = 0
        self._limits = limits
        self._idle_since = time.monotonic()
        environment = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT} | _ONE_THREAD
        try:
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(limits))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=_ROOT,
                env=environment,
                # Ctrl-C is for the server, which lets a running write finish.
                start_new_session=True,
            )
        except OSError as error:
            raise ComponentUnavailable("document parser", f"its process does not start: {error.strerror}") from None
        greeting, _ = self._exchange(b"", _START_TIMEOUT_S, 1024)
        if not greeting:
            self.close()
            raise ComponentUnavailable(
                "document parser", f"its process ended with status {self._process.returncode} before it listened"
            )

    def ask(self, parser: str, body: bytes) -> dict[str, Any]:
        """The worker's answer. Raises: _WorkerDied; UnparsableDocument when the time is over."""
        self.num_documents += 1
        header = json.dumps({"parser": parser, "num_bytes": len(body)}).encode() + b"\n"
        # A character of the text takes at most 6 bytes of JSON, and 12 characters make the shortest section.
        max_bytes = 12 * max(self._limits.max_chars, len(body)) + 2**20
        line, is_overdue = self._exchange(header + body, self._limits.timeout_s, max_bytes)
        if is_overdue:
            raise UnparsableDocument(
                f"parsing took longer than {self._limits.timeout_s:g} s and was stopped. Split the file, or send its "
                "text as text/plain.",
                param="body",
            )
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise _WorkerDied(self._end()) from None
        self._idle_since = time.monotonic()
        return answer

    def is_spent(self) -> bool:
        """Whether it has ended, or is about to end for having idled."""
        return self._process.poll() is not None or time.monotonic() - self._idle_since > 0.8 * IDLE_S

    def close(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        self._end()

    def _exchange(self, request: bytes, timeout_s: float, max_bytes: int) -> tuple[bytes, bool]:
        """Send, then read one line, empty where the process ended first; whether the time was over."""
        assert self._process.stdin is not None and self._process.stdout is not None
        is_overdue = threading.Event()

        def stop() -> None:
            is_overdue.set()
            self._process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            # The worker reads all of a request before it writes, so neither waits for the other.
            with suppress(OSError):
                self._process.stdin.write(request)
                self._process.stdin.flush()
                line = self._process.stdout.readline(max_bytes)
        finally:
            timer.cancel()
        return line, is_overdue.is_set()

    def _end(self) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


# Starts no process before the first file that needs one.
POOL = ParserPool()
atexit.register(POOL.close)
