"""The ambiguity head on disk: `ambiguity.json` beside `ambiguity.safetensors`. Nothing in them is code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from engine.durable_files import write_file
from engine.errors import ConfigError
from engine.regular_files import Unreadable, read_regular
from engine.routing.ambiguity import AmbiguityHead, EmbeddingPart, SignalPart, WordPart

HEAD_FILE, ARRAYS_FILE = "ambiguity.json", "ambiguity.safetensors"
FORMAT: Literal[1] = 1
# What a hostile file may make this process hold.
MAX_BYTES = 64 * 2**20
MAX_JSON_BYTES = 2**20
_Arrays = dict[str, NDArray[np.generic]]


class _Content(BaseModel):
    """ambiguity.json. `encoder` is set where the head reads embeddings, `signals` where it reads signals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    arrays_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bias: Annotated[float, Field(allow_inf_nan=False)]
    common_words: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=10_000)]
    slope: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    offset: Annotated[float, Field(allow_inf_nan=False)]
    encoder: str | None = None
    bandwidth: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    signal_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    signals: Annotated[tuple[str, ...], Field(max_length=1_000)] | None = None


def write_ambiguity(folder: Path, head: AmbiguityHead) -> None:
    """Write both files into `folder`, which must exist; the same head gives the same bytes. Raises: OSError."""
    arrays: dict[str, NDArray[np.generic]] = {"words": head.words.weights}
    if head.embedding is not None:
        arrays["embedding.landmarks"] = head.embedding.landmarks
        arrays["embedding.weights"] = head.embedding.weights
    if head.signals is not None:
        for field in ("means", "scales", "weights", "unknown"):
            arrays[f"signals.{field}"] = getattr(head.signals, field)
    packed = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    content = _Content(
        arrays_sha256=hashlib.sha256(packed).hexdigest(),
        bias=head.bias,
        common_words=tuple(sorted(head.words.common)),
        slope=head.slope,
        offset=head.offset,
        encoder=None if head.embedding is None else head.embedding.encoder,
        bandwidth=1.0 if head.embedding is None else head.embedding.bandwidth,
        signal_scale=0.0 if head.embedding is None else head.embedding.signal_scale,
        signals=None if head.signals is None else head.signals.names,
    )
    write_file(folder / ARRAYS_FILE, packed)
    write_file(folder / HEAD_FILE, (content.model_dump_json(indent=1) + "\n").encode())


def read_ambiguity(folder: Path) -> AmbiguityHead:
    """What `write_ambiguity` wrote. Raises: ConfigError naming the file, what is wrong and the fix."""
    content = _read_content(folder / HEAD_FILE)
    path = folder / ARRAYS_FILE
    packed = _bytes_of(path, MAX_BYTES)
    if hashlib.sha256(packed).hexdigest() != content.arrays_sha256:
        raise _broken(path, f"has another SHA-256 than {HEAD_FILE} names")
    try:
        return _head(content, load(packed))
    except (SafetensorError, ValueError, KeyError) as error:
        raise _broken(path, str(error)) from None


def _head(content: _Content, arrays: _Arrays) -> AmbiguityHead:
    words = _array(arrays, "words", np.float32, 1)
    embedding, signals = None, None
    if content.encoder is not None:
        landmarks = _array(arrays, "embedding.landmarks", np.float32, 2)
        if landmarks.shape[1] <= 2 * len(content.signals or ()):
            raise ValueError(f"embedding.landmarks are {landmarks.shape}: no room for an embedding and the signals")
        weights = _array(arrays, "embedding.weights", np.float32, 1, len(landmarks))
        embedding = EmbeddingPart(content.encoder, landmarks, weights, content.bandwidth, content.signal_scale)
    if content.signals is not None:
        num = len(content.signals)
        fields = ("means", "scales", "weights", "unknown")
        columns = [_array(arrays, f"signals.{each}", np.float64, 1, num) for each in fields]
        if not (columns[1] > 0).all():
            raise ValueError("signals.scales must be positive")
        signals = SignalPart(content.signals, *columns)
    known = {"words"} | {name for name in arrays if embedding is not None and name.startswith("embedding.")}
    known |= {name for name in arrays if signals is not None and name.startswith("signals.")}
    if left := set(arrays) - known:
        raise ValueError(f"tensors {', '.join(sorted(left))} belong to no part of the head")
    part = WordPart(words, frozenset(content.common_words))
    return AmbiguityHead(content.bias, part, embedding, signals, content.slope, content.offset)


def _array(arrays: _Arrays, name: str, dtype: type, ndim: int, num: int | None = None) -> NDArray[Any]:
    """A tensor after checks of its type, shape (`num` columns, any where None) and values."""
    if name not in arrays:
        raise ValueError(f"tensor {name} is missing")
    array = arrays[name]
    if array.dtype != dtype or array.ndim != ndim or not array.size or (num is not None and array.shape[-1] != num):
        wanted = f"{ndim}-dimensional {np.dtype(dtype).name}" + ("" if num is None else f" with {num} values")
        raise ValueError(f"tensor {name} is {array.dtype} {array.shape}; it must be {wanted}")
    floats: NDArray[Any] = np.asarray(array, dtype=dtype)
    if not np.isfinite(floats).all():
        raise ValueError(f"tensor {name} holds NaN or infinity")
    return floats


def _read_content(path: Path) -> _Content:
    try:
        return _Content.model_validate_json(_bytes_of(path, MAX_JSON_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"])
        raise _broken(path, f"{place}: {first['msg']}" if place else first["msg"]) from None


def _bytes_of(path: Path, most: int) -> bytes:
    try:
        return read_regular(path, most, "ambiguity head")
    except Unreadable as error:
        raise _broken(path, str(error)) from None


def _broken(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path}: {why}. Fit the ambiguity head again, or remove the file.")
