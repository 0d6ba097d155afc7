"""Triton's kernels on a CPU, by its interpreter, in a process of its own: it decides that when it is imported.

python -m loadtest.kernels.interpreted      one JSON object: words on each operation, and those that are wrong
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

from rich.console import Console

from loadtest.environment import REPOSITORY
from loadtest.gpu.record import Budget, Record

_LIMIT_S = 900.0


def interpreted_parity() -> tuple[dict[str, str], dict[str, str]]:
    """Words on each operation, and on those that are wrong or failed."""
    if importlib.util.find_spec("triton") is None:
        return {"interpreter": "not checked: the package triton is not installed; pip install -e '.[dev]'"}, {}
    command = [sys.executable, "-m", "loadtest.kernels.interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode != 0:
        return {}, {"interpreter": f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"}
    said, failed = json.loads(done.stdout)
    return said, failed


def main() -> None:
    """Print what `interpreted_parity` returns."""
    from loadtest.gpu.operations import INTERPRETER, check_operations

    record = Record("interpreted", None, Budget(_LIMIT_S), Console(quiet=True))
    check_operations(record, INTERPRETER)
    print(json.dumps([record.found.extra.get("parity", {}), record.failed]))


if __name__ == "__main__":
    main()
