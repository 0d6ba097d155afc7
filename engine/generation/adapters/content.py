"""The files that make up an adapter: how they are read, and the digest that names their contents. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from engine.errors import InvalidAdapter
from engine.generation.adapters.config_file import CONFIG_FILE
from engine.generation.adapters.manifest import MANIFEST_FILE
from engine.regular_files import Unreadable, read_regular

WEIGHTS_FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
MAX_JSON_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 33


def read_file(folder: Path, file: str, name: str, max_bytes: int) -> bytes:
    """The content of a regular file that lies in the folder itself, links resolved. Raises: InvalidAdapter."""
    path = folder / file
    try:
        if path.resolve(strict=True).parent != folder.resolve(strict=True):
            raise InvalidAdapter(name, f"{file} is a link out of its folder; put the file itself there")
        return read_regular(path, max_bytes, "adapter of this model and rank")
    except OSError as error:
        raise InvalidAdapter(name, f"{file} cannot be read ({error.strerror})") from None
    except Unreadable as error:
        raise InvalidAdapter(name, f"{file} {error}") from None


def read_contents(folder: Path, name: str, max_weights_bytes: int = MAX_WEIGHTS_BYTES) -> dict[str, bytes]:
    """The contents of an adapter's files by name, the manifest where there is one. Raises: InvalidAdapter."""
    contents = {
        CONFIG_FILE: read_file(folder, CONFIG_FILE, name, MAX_JSON_BYTES),
        WEIGHTS_FILE: read_file(folder, WEIGHTS_FILE, name, max_weights_bytes),
    }
    if (folder / MANIFEST_FILE).exists():
        contents[MANIFEST_FILE] = read_file(folder, MANIFEST_FILE, name, MAX_JSON_BYTES)
    return contents


def content_digest(contents: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) of an adapter by its files' contents: configuration, weights and, where there is one, manifest.

    All three decide what it answers. Other files count where the manifest has their digests.
    """
    digest = sha256()
    for file in FILES:
        if file in contents:
            digest.update(f"{file} {len(contents[file])}\n".encode() + contents[file])
    return digest.hexdigest()
