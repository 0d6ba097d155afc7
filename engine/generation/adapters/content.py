"""The files that make up an adapter: how they are read, and the digest that names their contents. No torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from engine.errors import InvalidAdapter
from engine.generation.adapters.config_file import CONFIG_FILE
from engine.generation.adapters.manifest import MANIFEST_FILE

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_JSON_BYTES = 1 << 20


def read_file(folder: Path, file: str, name: str, max_bytes: int) -> bytes:
    """The content of a regular file that lies in the folder itself, links resolved. Raises: InvalidAdapter."""
    path = folder / file
    try:
        if path.resolve(strict=True).parent != folder.resolve(strict=True):
            raise InvalidAdapter(name, f"{file} is a link out of its folder; put the file itself there")
        # Opened without waiting: a pipe in its place must not hang the reader.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidAdapter(name, f"{file} is no regular file")
            content = opened.read(max_bytes + 1)
    except OSError as error:
        raise InvalidAdapter(name, f"{file} cannot be read ({error.strerror})") from None
    if len(content) > max_bytes:
        raise InvalidAdapter(
            name, f"{file} has more than {max_bytes} bytes, which no adapter of this model and rank needs"
        )
    return content


def content_digest(contents: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) of an adapter by its files' contents: configuration, weights and, where there is one, manifest.

    All three decide what it answers. Other files count where the manifest has their digests.
    """
    digest = sha256()
    for file in (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE):
        if file in contents:
            digest.update(f"{file} {len(contents[file])}\n".encode() + contents[file])
    return digest.hexdigest()
