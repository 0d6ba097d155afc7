"""The embeddings of training inputs that an adapter carries, so that a router can tell how near a question is to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from engine.durable_files import write_file
from engine.errors import TrainingError
from engine.generation.adapters.inputs import inputs_content
from engine.generation.adapters.manifest import INPUTS_FILE, MAX_ENCODER_NAME, MAX_INPUTS, InputsFile
from engine.retrieval.encoding.protocol import EncoderLike, Vectors
from engine.retrieval.followups import standalone_query
from engine.tuning.data.rows import ChatRow, Row
from engine.tuning.run.rows import draw_rows


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """`vectors` [N, E] float32 of `texts`, as `encoder` embeds questions."""

    encoder: EncoderLike
    texts: tuple[str, ...]
    vectors: Vectors

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[N, E] of any texts; those of the inputs are not embedded again."""
        known = dict(zip(self.texts, self.vectors, strict=True))
        others = [text for text in dict.fromkeys(texts) if text not in known]
        if others:
            known |= zip(others, self.encoder.encode(others, is_query=True), strict=True)
        return np.stack([known[text] for text in texts])


def encode_inputs(rows: Sequence[Row], encoder: EncoderLike, *, seed: int) -> EncodedInputs:
    """Embed what users would send to be answered as `rows` are: MAX_INPUTS of them, drawn by the seed, or all.

    The same rows and seed give the same embeddings on one machine: they are embedded by a call of their own.
    """
    texts = tuple(asked_text(row) for row in draw_rows(rows, MAX_INPUTS, seed=seed))
    return EncodedInputs(encoder, texts, encoder.encode(texts, is_query=True))


def asked_text(row: Row) -> str:
    """What a search for the row's question embeds."""
    return standalone_query(row.messages[:-1]) if isinstance(row, ChatRow) else row.input_text


def write_inputs(folder: Path, inputs: EncodedInputs | None) -> InputsFile | None:
    """Write inputs.safetensors beside PEFT's files. Returns what the manifest says of it.

    Without inputs, and where the encoder gave no direction to any of them, there is no file afterwards, and None.
    Raises: TrainingError when the disk refuses.
    """
    path = folder / INPUTS_FILE
    try:
        rows = np.empty((0, 0), np.float32) if inputs is None else _unit_rows(inputs.vectors)
        if inputs is None or not len(rows):
            path.unlink(missing_ok=True)
            return None
        content = inputs_content(rows.astype(np.float16))
        write_file(path, content)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror}). Free disk space.") from None
    identity = inputs.encoder.identity
    return InputsFile(
        rows=len(rows),
        dimension=rows.shape[1],
        encoder=identity.name[:MAX_ENCODER_NAME],
        encoder_digest=identity.digest,
        sha256=sha256(content).hexdigest(),
    )


def _unit_rows(vectors: Vectors) -> Vectors:
    """[N, E] of unit length, without rows that have no direction."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    has_direction = (np.isfinite(lengths) & (lengths > 0))[:, 0]
    rows: Vectors = vectors[has_direction] / lengths[has_direction]
    return rows
