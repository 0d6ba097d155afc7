"""sentence-transformers in a process of its own, spoken to in lines of JSON.

A second thread team in one process makes OpenMP put threads to sleep between parallel regions, so the peer beside our
encoder would slow both. The clock runs here, around the encoding alone.

    {"texts": ["..."], "method": "encode", "save": "vectors.npy"}  ->  {"seconds": 1.5}

`save` null keeps the vectors from being written; the methods are those of SentenceTransformer.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

METHODS = ("encode", "encode_query", "encode_document")


def main() -> None:
    """Answer requests from standard input until it ends."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what the library prints must not get between the lines
    path, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model: Any = SentenceTransformer(path, device="cpu", local_files_only=True)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply: dict[str, Any] = {"seconds": _encode(model, **json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def _encode(model: Any, texts: list[str], method: str, save: str | None) -> float:
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; allowed: {', '.join(METHODS)}")
    encode = getattr(model, method)
    started = time.perf_counter()
    vectors = encode(texts)
    seconds = time.perf_counter() - started
    if save is not None:
        np.save(save, vectors, allow_pickle=False)
    return seconds


if __name__ == "__main__":
    main()
