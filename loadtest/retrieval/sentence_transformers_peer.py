"""The process with sentence-transformers, as seen from the benches."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.retrieval.encoding.protocol import Vectors

NAME = "sentence-transformers"
Method = Literal["encode", "encode_query", "encode_document"]


def absence() -> str | None:
    """Why the peer cannot take part, with the remedy; None where it can."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed: pip install '.[bench]'"
    return None


class SentenceTransformersPeer:
    """A running worker."""

    def __init__(self, worker: subprocess.Popen[str]) -> None:
        self._worker = worker

    def seconds(self, texts: Sequence[str]) -> float:
        """Time of `encode(texts)` with the library's defaults, by the worker's own clock."""
        return self._ask(texts, "encode", None)

    def vectors(self, texts: Sequence[str], method: Method) -> Vectors:
        """[N, E] float32, by `encode_query` or `encode_document`, which add the model's prompts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vectors.npy"
            self._ask(texts, method, str(file))
            vectors: Vectors = np.load(file, allow_pickle=False).astype(np.float32)
            return vectors

    def _ask(self, texts: Sequence[str], method: Method, save: str | None) -> float:
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps({"texts": list(texts), "method": method, "save": save}) + "\n")
        self._worker.stdin.flush()
        seconds: float = _reply(self._worker)["seconds"]
        return seconds


@contextmanager
def sentence_transformers(path: Path, threads: int) -> Iterator[SentenceTransformersPeer]:
    """A worker that has loaded the encoder in folder `path`; ended afterwards."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "loadtest.retrieval.sentence_transformers_worker", str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            cwd=Path(__file__).parents[2],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        with worker:
            try:
                try:
                    _reply(worker)
                except RuntimeError as error:
                    log.seek(0)
                    raise RuntimeError(f"{error}: {''.join(log.readlines()[-1:]).strip()}") from None
                yield SentenceTransformersPeer(worker)
            finally:
                worker.kill()


def _reply(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"the process with {NAME} ended")
    reply: dict[str, Any] = json.loads(line)
    if "error" in reply:
        raise RuntimeError(f"{NAME}: {reply['error']}")
    return reply
