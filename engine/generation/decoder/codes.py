"""The codes of a quantised checkpoint, which GGUF's conversion keeps beside the weights that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelSourceError
from kernels.packed_linear import BlockCodes, stack_codes

FILE = "quantised.safetensors"
# Rows of a weight that are compared with what its codes stand for.
_COMPARED_ROWS = 4


class Codes:
    """`quantised.safetensors` of a model's folder; without that file, nothing has codes. A context manager."""

    def __init__(self, path: Path | None) -> None:
        """`path` is the model's folder; None: leave its codes alone.

        Raises: ModelSourceError when the file cannot be read.
        """
        self._path = path
        self._files = ExitStack()
        self._file: Any = None
        self._names: frozenset[str] = frozenset()
        if path is None or not (path / FILE).is_file():
            return
        try:
            self._file = self._files.enter_context(safe_open(path / FILE, framework="pt"))
            self._names = frozenset(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise ModelSourceError(
                f"{path / FILE} cannot be read ({' '.join(str(error).split())}). Fetch the model anew."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read_stacked(self, names: Sequence[str], weight: Tensor) -> BlockCodes | None:
        """The codes of several tensors as one along their outputs; None where one has none, or of other bits.

        `weight` is the same tensors' weights stacked. Raises: ModelSourceError when the codes stand for others.
        """
        if not all(f"{name}.codes" in self._names for name in names):
            return None
        parts = [self._read(name) for name in names]
        if len({part.bits for part in parts}) > 1:
            return None
        try:
            codes = stack_codes(parts)
            is_same = codes.codes.shape[0] == weight.shape[0] and _agree(codes, weight)
        except (ValueError, RuntimeError):  # parts whose sizes contradict each other
            is_same = False
        if not is_same:
            raise ModelSourceError(
                f"{self._path}: {FILE} holds other weights than the model for {', '.join(names)}. Remove that file, or "
                "fetch the model anew."
            )
        return codes

    def _read(self, name: str) -> BlockCodes:
        mins = f"{name}.mins"
        return BlockCodes(
            self._file.get_tensor(f"{name}.codes"),
            self._file.get_tensor(f"{name}.scales"),
            self._file.get_tensor(mins) if mins in self._names else None,
        )


def _agree(codes: BlockCodes, weight: Tensor) -> bool:
    few = slice(_COMPARED_ROWS)
    mins = None if codes.mins is None else codes.mins[few]
    stood_for = BlockCodes(codes.codes[few], codes.scales[few], mins).dequantised()
    return torch.equal(stood_for.to(weight.dtype), weight[few])
