"""Token ids to text as they arrive: no half characters, no text that belongs to a stop string."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class IncrementalDetokenizer:
    """Decodes one answer token by token; special tokens give no text. Work per token does not grow with the answer.

    The pieces add up to `tokenizer.decode(token_ids, skip_special_tokens=True)` before its optional clean-up of
    spaces, and U+FFFD appears only where that has it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        self._skipped = frozenset(i for i, token in added.items() if token.special)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if _is_byte_level(self._backend.decoder) else None
        self._window: list[int] = []
        self._emitted = 0

    def push(self, token_id: int) -> str:
        """Text that is certain after this token; empty inside a character."""
        token = None if token_id in self._skipped else self._backend.id_to_token(token_id)
        if token is None:
            return ""
        if self._utf8 is not None:
            return self._utf8.decode(_token_bytes(token))
        self._window.append(token_id)
        # Whether a run of byte tokens is text shows at its end only: one bad byte turns all of the run into U+FFFD.
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._decode_window()
        self._window = [token_id]
        self._emitted = len(self._backend.decode(self._window))
        return text

    def flush(self) -> str:
        """Text still held back at the end of the answer: an incomplete character as U+FFFD. Ends this answer."""
        if self._utf8 is not None:
            return self._utf8.decode(b"", final=True)
        text = self._decode_window()
        self._window, self._emitted = [], 0
        return text

    def _decode_window(self) -> str:
        """Text behind the first token of the window, which was given out before and is there for its spacing."""
        text: str = self._backend.decode(self._window)
        return text[self._emitted :]


def token_data(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes:
    """The bytes that a token stands for, special tokens by their name; empty for an id without a token."""
    backend = tokenizer.backend_tokenizer
    token = backend.id_to_token(token_id)
    if token is None:
        return b""
    if token_id in backend.get_added_tokens_decoder():
        return bytes(token.encode())
    if _is_byte_level(backend.decoder):
        return _token_bytes(token)
    if _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return bytes(token.replace("\u2581", " ").encode())


class StopStrings:
    """Cuts a stream of text before the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is certain not to belong to a stop string, and whether one has been found (the answer ends)."""
        if not self._stops:
            return text, False
        text = self._held + text
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self._held = ""
            return text[: min(starts)], True
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What is held back, when the answer ends for another reason."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _is_byte_level(decoder: object) -> bool:
    if isinstance(decoder, decoders.Sequence):
        return "ByteLevel(" in repr(decoder)
    return isinstance(decoder, decoders.ByteLevel)


def _token_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; one with characters outside that alphabet stands for its own UTF-8."""
    byte_of = _byte_of_character()
    try:
        return bytes([byte_of[character] for character in token])
    except KeyError:
        return token.encode()


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
