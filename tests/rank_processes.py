"""Processes that are the other ranks of a test's engine, kept for the next test because starting one takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue

from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from engine.generation.parallel.group import RankGroup

REPOSITORY = Path(__file__).parents[1]
END_S = 60.0


class RankProcess:
    """One of them. `is_idle`: it waits for a task."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "rank_host.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        self.is_idle = True
        self._ends: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def be(self, folder: Path, rank: int, model: Path, settings: GeneratorSettings) -> None:
        """Be that rank: the first one until it is killed, another one until the first is gone."""
        task = {"folder": str(folder), "rank": rank, "model": str(model), "settings": settings.model_dump(mode="json")}
        self.is_idle = False
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()

    def ended(self) -> str:
        """How it ended, or that the first rank "leads": "stopped", the class and message of an error, or "died"."""
        end = self._ends.get(timeout=END_S)
        self.is_idle = end != "died"
        return end

    def close(self) -> None:
        """End it, whatever it does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait(timeout=10)
        self._reader.join(timeout=10)
        self.process.stdout.close()
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._ends.put(json.loads(line))
        self._ends.put("died")


class RankPool:
    """As many of them as a test needs at once."""

    def __init__(self) -> None:
        self._processes: list[RankProcess] = []
        self.others: list[RankProcess] = []  # of the group that was started last
        self.ends: list[str] = []

    def start(self, folder: Path, model: Path, settings: GeneratorSettings) -> list[RankProcess]:
        """All ranks but the first of `settings.tensor_parallel`."""
        started = []
        for rank in range(1, settings.tensor_parallel):
            process = next((each for each in self._processes if each.is_idle), None)
            if process is None:
                process = RankProcess()
                self._processes.append(process)
            process.be(folder, rank, model, settings)
            started.append(process)
        return started

    @contextmanager
    def group(
        self, model: Path, settings: GeneratorSettings, *, answer_s: float = 60.0, other_model: Path | None = None
    ) -> Iterator[RankGroup]:
        """The first rank of a group whose others run, with `other_model` if that is named. At the end they have ended:
        `ends` says how.
        """
        self.ends.clear()
        with tempfile.TemporaryDirectory(prefix="ranks-") as name:
            self.others = others = self.start(Path(name), other_model or model, settings)
            ranks = None
            try:
                ranks = RankGroup(Path(name), 0, settings.tensor_parallel, meet_s=120, answer_s=answer_s)
                yield ranks
            finally:
                if ranks is not None:
                    ranks.close()
                self.ends += [process.ended() for process in others]

    @contextmanager
    def engine(self, model: Path, settings: GeneratorSettings, engine_class: type[Engine] = Engine) -> Iterator[Engine]:
        """An engine over `settings.tensor_parallel` processes, or in this one alone."""
        if settings.tensor_parallel == 1:
            engine = engine_class(model, settings)
            try:
                yield engine
            finally:
                engine.close()
            return
        with self.group(model, settings) as ranks:
            engine = engine_class(model, settings, ranks=ranks)
            try:
                yield engine
            finally:
                engine.close()

    def close(self) -> None:
        """End all of them."""
        for process in self._processes:
            process.close()
