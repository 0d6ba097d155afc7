"""Compile every kernels/*/native*.cpp into one library."""

from __future__ import annotations

from pathlib import Path

from kernels.building import BuildError, compiled

__all__ = ["FLAGS", "BuildError", "build"]

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # Errors of libm and floating-point traps are not looked at; NaN and infinity keep their meaning.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_KERNELS = Path(__file__).parents[1]


def build(cache: Path | None = None) -> Path:
    """Path of the compiled library; see `kernels.building.compiled`."""
    sources = sorted(_KERNELS.glob("*/native*.cpp"))
    headers = sorted({*_KERNELS.glob("native/*.h"), *_KERNELS.glob("*/native*.h")})
    return compiled("kernels", sources, FLAGS, headers=headers, include=_KERNELS / "native", cache=cache)
