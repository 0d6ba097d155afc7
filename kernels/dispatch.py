"""Which implementation of an operation runs: decided by its arguments alone, and said once."""

from __future__ import annotations

import logging
from typing import Literal

import torch

Chosen = Literal["torch", "native", "triton"]
Backend = Literal["auto"] | Chosen

_log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()


def choose_backend(
    operation: str, backend: Backend, device: torch.device, *, has_triton: bool = False, has_native: bool = True
) -> Chosen:
    """The implementation of `operation` for tensors on `device`.

    "auto" takes the native one on a CPU that has it, and on a GPU the Triton one if there is one and Triton works.
    Raises: RuntimeError naming a backend that was asked for by name and is absent, and why.
    """
    chosen: Chosen = "torch"
    if backend == "native" or (backend == "auto" and device.type == "cpu"):
        missing = _native_absence(device) if has_native else "it has no such implementation"
        if missing is None:
            chosen = "native"
        elif backend == "native":
            raise RuntimeError(f"{operation}: backend 'native' is absent: {missing}")
    elif backend == "triton" or (backend == "auto" and has_triton):
        from kernels.triton_absence import triton_absence  # imports Triton, and compiles on first use

        missing = triton_absence(device.type) if has_triton else "it has no such implementation"
        if missing is None:
            chosen = "triton"
        elif backend == "triton":
            raise RuntimeError(f"{operation}: backend 'triton' is absent: {missing}")
    elif backend not in ("auto", "torch"):
        raise RuntimeError(f"{operation}: backend {backend!r} is absent; there is: auto, torch, native, triton")
    if (operation, chosen) not in _said:
        _said.add((operation, chosen))
        _log.info("%s runs on %s", operation, chosen)
    return chosen


def _native_absence(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it runs on a CPU, these tensors are on {device}"
    from kernels.native import absence  # compiles on first use

    return absence()
