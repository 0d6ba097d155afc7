"""Compile C++ into a library that is kept by content, so that it is compiled once a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

TIMEOUT_S = 180


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which and shows its first error."""


def compiled(
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str],
    *,
    headers: Sequence[Path] = (),
    include: Path | None = None,
    cache: Path | None = None,
) -> Path:
    """Path of the library; compiled now if these files, flags, compiler and processor are new to the cache.

    `include` is a folder of headers. `cache` defaults to SWITCHYARD_CACHE or ~/.cache/switchyard. Two processes may
    build at once. Raises: BuildError.
    """
    compiler = shutil.which(os.environ.get("CXX", "") or "c++") or shutil.which("g++")
    if compiler is None:
        raise BuildError("no C++ compiler is installed (CXX, c++ or g++); on Debian: apt-get install g++")
    key = sha256()
    for file in (*sources, *headers):
        key.update(file.name.encode() + file.read_bytes())
    for part in (*flags, compiler, _version(compiler), _processor()):
        key.update(part.encode())
    root = cache or Path(os.environ.get("SWITCHYARD_CACHE") or Path.home() / ".cache" / "switchyard")
    target = root / "native" / f"{name}-{key.hexdigest()[:16]}.so"
    if not target.is_file():
        # Where the files lie changes nothing about them, so no path is in the key.
        where = [] if include is None else [f"-I{include}"]
        _compile([compiler, *flags, *where, *map(str, sources)], target)
    return target


def _compile(command: list[str], target: Path) -> None:
    compiler = command[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode != 0:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise BuildError(f"{compiler} failed: {(errors or ['no message'])[0]}")
            output.replace(target)  # whole or not at all, whoever builds at the same time
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} could not be run: {error}") from None


def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} could not be run: {error}") from None


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
