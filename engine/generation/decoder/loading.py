"""A checkpoint's tensors, read one at a time so that loading needs little more memory than the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelSourceError
from engine.generation.parallel.split import Part

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Checkpoint:
    """The safetensors of one folder: `model.safetensors`, or the shards of `model.safetensors.index.json`.

    A context manager; tensors come out in `dtype` on `device`, and are not kept.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: str) -> None:
        """Raises: ModelSourceError when there is no such file or it cannot be read."""
        self._path = path
        self._dtype = dtype
        self._device = device
        self._files = ExitStack()
        self._file_of: dict[str, Any] = {}
        self._unread: set[str] = set()
        try:
            for name in _file_names(path):
                file: Any = self._files.enter_context(safe_open(path / name, framework="pt"))
                self._file_of.update(dict.fromkeys(file.keys(), file))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            self._files.close()
            raise ModelSourceError(
                f"{path}: the weights cannot be read ({' '.join(str(error).split())}). Fetch the model anew."
            ) from None
        self._unread = set(self._file_of)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, shape: Sequence[int], part: Part | None = None) -> Tensor:
        """One tensor, or `part` of it, of which alone the file is read.

        Raises: ModelSourceError when it is absent, or of another shape or kind of number.
        """
        return self.read_stacked([name], [shape], part)

    def read_stacked(self, names: Sequence[str], shapes: Sequence[Sequence[int]], part: Part | None = None) -> Tensor:
        """Several tensors, or the same part of each, as one along their first dimension. Raises: as `read`."""
        sizes = [_size(shape, part) for shape in shapes]
        rows = sum(size[0] for size in sizes)
        stacked = torch.empty((rows, *sizes[0][1:]), dtype=self._dtype, device=self._device)
        row = 0
        for name, shape, size in zip(names, shapes, sizes, strict=True):
            stacked[row : row + size[0]] = self._tensor(name, shape, part)
            row += size[0]
        return stacked

    def refuse_unread(self, ignored: Iterable[str]) -> None:
        """Raise ModelSourceError for tensors that nothing has read: the decoder would answer without them."""
        left = sorted(name for name in self._unread.difference(ignored) if not name.endswith("rotary_emb.inv_freq"))
        if left:
            raise ModelSourceError(
                f"{self._path}: the weights hold {', '.join(left[:3])} and {len(left) - 1} more tensors that its "
                "config.json gives no place to. Name another model with generator.model."
            )

    def _tensor(self, name: str, shape: Sequence[int], part: Part | None) -> Tensor:
        file = self._file_of.get(name)
        if file is None:
            raise ModelSourceError(f"{self._path}: the weights lack {name}. Save the model anew.")
        stored = file.get_slice(name)
        if stored.get_dtype() not in _DTYPES:
            raise ModelSourceError(
                f"{self._path}: {name} is stored as {stored.get_dtype()}; supported: {', '.join(_DTYPES)}. "
                "Save the model in one of these."
            )
        if list(stored.get_shape()) != list(shape):
            raise ModelSourceError(
                f"{self._path}: {name} has shape {list(stored.get_shape())}; config.json asks for {list(shape)}."
            )
        self._unread.discard(name)
        tensor: Tensor = file.get_tensor(name) if part is None else stored[_cut(shape, part)]
        return tensor


def _cut(shape: Sequence[int], part: Part) -> tuple[slice, ...]:
    """What is read of each dimension."""
    return tuple(part.of(length) if part.dim == dim else slice(0, length) for dim, length in enumerate(shape))


def _size(shape: Sequence[int], part: Part | None) -> Sequence[int]:
    return shape if part is None else [cut.stop - cut.start for cut in _cut(shape, part)]


def _file_names(path: Path) -> list[str]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise ValueError("model.safetensors.index.json names a file outside its folder")
    return names
