"""The library of what runs on numpy and text, without torch: for processes that decide and do not compute models.

Compiled of every kernels/*/alone.cpp on first use, for the caller's thread alone: a library that shares torch's threads
has to be loaded behind torch. Without a compiler, or with SWITCHYARD_NATIVE=0, plain Python and numpy run instead.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from kernels.building import BuildError, compiled

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
SOURCES = sorted(Path(__file__).parent.glob("*/alone.cpp"))

_log = logging.getLogger(__name__)
_POINTER, _WHOLE, _REAL, _BYTES = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_char_p


def absence() -> str | None:
    """Why there is no such library, or None where there is."""
    return _load()[1]


def library() -> Any:
    """The library. Raises: RuntimeError where `absence` gives a reason."""
    loaded, why = _load()
    if loaded is None:
        raise RuntimeError(f"native kernels are absent: {why}")
    return loaded


def opened(path: Path) -> Any:
    """A compiled library with the types of its functions. Raises: OSError."""
    found = ctypes.CDLL(str(path))
    found.switchyard_near_panel.restype = found.switchyard_near_code.restype = _WHOLE
    found.switchyard_near_rows.restype = found.switchyard_word_runs.restype = None
    found.switchyard_near_rows.argtypes = [*[_POINTER] * 5, *[_WHOLE] * 4, *[_REAL] * 2]
    found.switchyard_word_runs.argtypes = [_POINTER, _BYTES, _WHOLE, _BYTES, _WHOLE]
    return found


@lru_cache(maxsize=1)
def _load() -> tuple[Any, str | None]:
    if os.environ.get("SWITCHYARD_NATIVE") == "0":
        return None, "SWITCHYARD_NATIVE=0 turns it off"
    try:
        return opened(compiled("alone", SOURCES, FLAGS)), None
    except (BuildError, OSError) as error:
        _log.warning("native kernels are not used, Python and numpy run instead: %s", error)
        return None, str(error)
