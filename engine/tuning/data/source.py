"""Bytes of a file to numbered lines: decompressed, within limits, and every byte that is no UTF-8 kept visible."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, cast

from engine.errors import TrainingDataError
from engine.tuning.data.limits import DataLimits

_GZIP = b"\x1f\x8b"
# First bytes of files that people have instead, and how to make text of them.
_FOREIGN = {
    b"PAR1": "Parquet; write it as JSONL, with pandas: frame.to_json(path, orient='records', lines=True)",
    b"PK\x03\x04": "a zip or office file; export the table as CSV",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}


def read_lines(file: Path, limits: DataLimits) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of each line, blank ones too.

    A byte that is no UTF-8 becomes a lone surrogate U+DC80..U+DCFF, so that only its own row is bad.
    Raises: TrainingDataError naming file, line and fix.
    """
    number = size = 0
    try:
        with closing(_open(file)) as opened:
            while raw := opened.readline(limits.max_line_bytes + 1):
                number += 1
                size += len(raw)
                if number == 1:
                    _refuse_foreign(file, raw)
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if len(raw) > limits.max_line_bytes:
                    raise TrainingDataError(
                        f"{file}:{number}: the line has more than {limits.max_line_bytes} bytes. Write one example in "
                        "each line, and cut long contexts."
                    )
                if size > limits.max_bytes:
                    raise TrainingDataError(
                        f"{file}: has more than {limits.max_bytes} bytes, decompressed. Train on a sample of it."
                    )
                yield number, raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise TrainingDataError(
            f"{file}:{number + 1}: cannot be read ({why}). Name a readable, complete file."
        ) from None


def is_compressed(file: Path) -> bool:
    """Whether the file is gzip, by its first bytes. Raises: TrainingDataError where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(2) == _GZIP
    except OSError as error:
        raise TrainingDataError(f"{file}: cannot be read ({error.strerror}). Name a readable file.") from None


def encoding_fault(text: str) -> str | None:
    """Why `text` cannot be written as UTF-8, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"is not UTF-8 (byte 0x{code - 0xDC00:02x} at character {error.start + 1}); save the file as UTF-8"
        return f"holds \\u{code:04x}, half of a surrogate pair; write the complete character"
    return None


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if is_compressed(file) else file.open("rb")


def _refuse_foreign(file: Path, head: bytes) -> None:
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise TrainingDataError(f"{file}: is no JSONL or CSV in UTF-8, but {what}.")
