"""Compile every kernels/*/native*.cpp into one library, kept by content so that it is compiled once a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # Errors of libm and floating-point traps are not looked at; NaN and infinity keep their meaning.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
TIMEOUT_S = 180
_KERNELS = Path(__file__).parents[1]


class BuildError(Exception):
    """There is no compiler, or it failed; the message says which and shows its first error."""


def build(cache: Path | None = None) -> Path:
    """Path of the compiled library; compiled now if this source, compiler and processor are new to the cache.

    `cache` defaults to SWITCHYARD_CACHE or ~/.cache/switchyard. Two processes may build at once. Raises: BuildError.
    """
    compiler = shutil.which(os.environ.get("CXX", "") or "c++") or shutil.which("g++")
    if compiler is None:
        raise BuildError("no C++ compiler is installed (CXX, c++ or g++); on Debian: apt-get install g++")
    sources = sorted(_KERNELS.glob("*/native*.cpp"))
    headers = sorted({*_KERNELS.glob("native/*.h"), *_KERNELS.glob("*/native*.h")})
    key = sha256()
    for file in (*sources, *headers):
        key.update(file.name.encode() + file.read_bytes())
    for part in (*FLAGS, compiler, _version(compiler), _processor()):
        key.update(part.encode())
    root = cache or Path(os.environ.get("SWITCHYARD_CACHE") or Path.home() / ".cache" / "switchyard")
    target = root / "native" / f"kernels-{key.hexdigest()[:16]}.so"
    if not target.is_file():
        _compile(compiler, sources, target)
    return target


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            command = [compiler, *FLAGS, f"-I{_KERNELS / 'native'}", *map(str, sources), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
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
