"""Whether Triton kernels run here: found out once, by running one."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import lru_cache

import torch

_log = logging.getLogger(__name__)


@lru_cache(maxsize=4)
def triton_absence(device: str) -> str | None:
    """Why Triton kernels do not run on tensors of a torch device type; None where they do.

    On a CPU they run in Triton's interpreter alone, which TRITON_INTERPRET=1 asks for before the first kernel.
    """
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device != "cuda":
        is_interpreting = os.environ.get("TRITON_INTERPRET") == "1"
        return None if is_interpreting else f"it runs on a GPU, these tensors are on {device}"
    from kernels.silu_mul.triton_op import silu_mul_triton

    try:
        silu_mul_triton(torch.zeros(1, 32, device=device))
    except Exception as error:  # no compiler, a driver that it does not know: many libraries' errors
        why = f"a kernel did not run ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        _log.warning("Triton is left out, which costs speed: %s", why)
        return why
    return None
