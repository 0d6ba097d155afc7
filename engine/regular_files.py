"""Files that may come from anywhere, read once and bounded."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class Unreadable(Exception):
    """Why a file was not read, as the end of a sentence that begins with its name."""


def read_regular(path: Path, max_bytes: int, kind: str) -> bytes:
    """The content of a regular file; `kind` names what it is of, for the message.

    Raises: Unreadable where it is none, cannot be read or has more than `max_bytes`.
    """
    try:
        # Opened without waiting: a pipe in its place must not hang the reader.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise Unreadable("is no regular file")
            content = opened.read(max_bytes + 1)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    if len(content) > max_bytes:
        raise Unreadable(f"has more than {max_bytes} bytes, which no {kind} needs")
    return content
