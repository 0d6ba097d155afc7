"""The CPU's implementations in C++, compiled once on the machine that runs them.

Importing this compiles nothing; the first call of `absence` or `library` does. Where there is no compiler, everything
runs on torch instead. SWITCHYARD_NATIVE=0 turns it off.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch  # loaded first: the library then shares torch's OpenMP threads instead of starting its own

from kernels.native.build import BuildError, build

_log = logging.getLogger(__name__)
# Numbers that the C++ side knows dtypes by.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("SWITCHYARD_NATIVE") == "0":
        return None, "SWITCHYARD_NATIVE=0 turns it off"
    try:
        return ctypes.CDLL(str(build())), None
    except (BuildError, OSError) as error:
        _log.warning("native kernels are not used, torch runs instead: %s", error)
        return None, str(error)


def absence() -> str | None:
    """Why there are no native kernels, or None where there are."""
    return _load()[1]


@lru_cache(maxsize=1)
def bf16_panel() -> int:
    """Columns of the panels in which the kernels that multiply bfloat16 take their weights; 0 without such kernels."""
    return 0 if absence() is not None else int(library().switchyard_panel())


def bf16_products_absence() -> str | None:
    """Why there are no kernels that multiply bfloat16, or None where there are."""
    if absence() is not None:
        return absence()
    return None if bf16_panel() else "this processor has neither AVX512-bf16 nor AVX2 with FMA"


def library() -> ctypes.CDLL:
    """The compiled kernels. Raises: RuntimeError where `absence` gives a reason."""
    loaded, why = _load()
    if loaded is None:
        raise RuntimeError(f"native kernels are absent: {why}")
    return loaded


def function(name: str, argument_types: str) -> Callable[..., None]:
    """A function of the library. `argument_types`: p pointer, i int64, f float, one letter each."""
    found: Any = getattr(library(), name)
    found.restype = None
    found.argtypes = [{"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}[kind] for kind in argument_types]
    typed: Callable[..., None] = found
    return typed
