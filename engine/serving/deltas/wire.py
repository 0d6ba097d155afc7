"""Frames: a length (4 bytes, big-endian), then JSON of [[key, [delta, ...]], ...]. A connection starts by a secret."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ConfigDict, TypeAdapter

from engine.values import TokenDelta

# A prompt's log-probabilities are the largest; a broken length must not fill the memory.
MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("!I")
_Bundles = list[tuple[int, list[TokenDelta]]]
_FRAME: TypeAdapter[_Bundles] = TypeAdapter(
    _Bundles, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
)


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Where the deltas of one answer go: the gateway's address, what it knows its generators by, the answer's key."""

    host: str
    port: int
    secret: str = field(repr=False)
    key: int

    @property
    def gateway(self) -> tuple[str, int, str]:
        """What answers of the same gateway have in common."""
        return self.host, self.port, self.secret


def pack(content: bytes) -> bytes:
    """A frame."""
    return _LENGTH.pack(len(content)) + content


def encode(bundles: Mapping[int, Sequence[TokenDelta]]) -> bytes:
    """The content of a frame with the deltas of each key."""
    return _FRAME.dump_json([(key, list(deltas)) for key, deltas in bundles.items()])


def decode(content: bytes) -> list[tuple[int, list[TokenDelta]]]:
    """What `encode` was given. Raises: ValueError."""
    return _FRAME.validate_json(content)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The content of the next frame. Raises: EOFError where there is none, or half of one; ValueError."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are taken")
    return await reader.readexactly(length)
