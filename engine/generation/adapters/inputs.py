"""The embeddings of what an adapter was trained on: how near a question is to it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from engine.errors import InvalidAdapter
from engine.generation.adapters.content import MAX_JSON_BYTES, read_file
from engine.generation.adapters.manifest import INPUTS_FILE, AdapterManifest, InputsFile

TENSOR = "embeddings"
# Rounding to float16 changes a length by 2^-11 at most.
_LENGTH_TOLERANCE = 2.0**-9


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """`embeddings` are [N, D] float16 of unit length, read-only, of texts as a search embeds its queries.

    They compare with those of the encoder of that digest alone.
    """

    embeddings: NDArray[np.float16]
    encoder: str
    encoder_digest: str


def inputs_content(embeddings: NDArray[np.float16]) -> bytes:
    """The file of [N, D] embeddings; the same embeddings give the same bytes."""
    return save_arrays({TENSOR: np.ascontiguousarray(embeddings)})


def read_inputs(folder: Path, manifest: AdapterManifest, name: str) -> TrainingInputs | None:
    """The training inputs of adapter `name` in `folder`; None where its manifest names none.

    Raises: InvalidAdapter saying what is wrong with the file: it is missing, not the one of the manifest, not of its
    shape, or its rows are no embeddings of unit length.
    """
    expected = manifest.inputs
    if expected is None:
        return None
    most = 2 * expected.rows * expected.dimension + MAX_JSON_BYTES
    content = read_file(folder, expected.file, name, most)
    found = sha256(content).hexdigest()
    if found != expected.sha256:
        raise InvalidAdapter(
            name,
            f"{expected.file} has the SHA-256 {found[:12]}..., its manifest says {expected.sha256[:12]}...; "
            "copy the files of one adapter together",
        )
    embeddings = _embeddings(content, expected, name)
    return TrainingInputs(embeddings, expected.encoder, expected.encoder_digest)


def _embeddings(content: bytes, expected: InputsFile, name: str) -> NDArray[np.float16]:
    try:
        arrays = load_arrays(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidAdapter(name, f"{INPUTS_FILE} is not safetensors ({' '.join(str(error).split())})") from None
    if set(arrays) != {TENSOR}:
        held = ", ".join(sorted(arrays))[:80] or "nothing"
        raise InvalidAdapter(name, f"{INPUTS_FILE} holds {held}; it must hold {TENSOR} alone")
    embeddings = arrays[TENSOR]
    shape = (expected.rows, expected.dimension)
    if embeddings.dtype != np.float16 or embeddings.shape != shape:
        raise InvalidAdapter(
            name,
            f"{INPUTS_FILE} holds {embeddings.dtype} {list(embeddings.shape)}, its manifest says float16 {list(shape)}",
        )
    lengths = np.linalg.norm(embeddings.astype(np.float32), axis=1)
    # A length that is no number is not near 1 either.
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))
    if len(wrong):
        row = int(wrong[0])
        raise InvalidAdapter(
            name, f"{INPUTS_FILE}: row {row} has the length {lengths[row]:.4g} instead of 1 ({len(wrong)} such rows)"
        )
    embeddings.flags.writeable = False
    return embeddings
