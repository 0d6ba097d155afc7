"""Frames: a length (4 bytes, big-endian), then JSON of [[key, delta], ...]. A connection begins with a secret."""

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
_Deltas = list[tuple[int, TokenDelta]]
_FRAME: TypeAdapter[_Deltas] = TypeAdapter(_Deltas, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


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


def encode(deltas: Mapping[int, Sequence[TokenDelta]]) -> bytes:
    """The content of a frame with the deltas of each key, joined to one."""
    return _FRAME.dump_json([(key, joined(each)) for key, each in deltas.items()])


def decode(content: bytes) -> list[tuple[int, TokenDelta]]:
    """The keys and deltas of a frame. Raises: ValueError."""
    return _FRAME.validate_json(content)


def joined(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """Neighbouring deltas of an answer as one: every event of a stream costs its gateway, however short it is."""
    if len(deltas) == 1:
        return deltas[0]
    return TokenDelta(
        text="".join(delta.text for delta in deltas),
        num_tokens=sum(delta.num_tokens for delta in deltas),
        prompt=deltas[0].prompt,
        finish_reason=deltas[-1].finish_reason,
        timings_ms=deltas[-1].timings_ms,
        logprobs=tuple(one for delta in deltas for one in delta.logprobs),
    )


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The content of the next frame. Raises: EOFError where there is none, or half of one; ValueError."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are taken")
    return await reader.readexactly(length)
