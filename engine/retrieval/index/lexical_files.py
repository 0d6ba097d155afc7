"""Whether the files of a lexical index are whole: tantivy writes checksums but does not compare them."""

from __future__ import annotations

import json
import mmap
import shutil
import zlib
from pathlib import Path

_META = "meta.json"
_PARTS = ("fast", "fieldnorm", "idx", "pos", "store", "term")
_MAGIC = 1337  # ends the footer of every file of a segment
_TAIL_BYTES = 8


def damage(folder: Path) -> str | None:
    """What is wrong with the last commit in `folder`, None when its files are whole.

    Files of commits that were interrupted belong to no segment and are not looked at.
    Returns: one line without the folder's name.
    """
    try:
        segments = json.loads((folder / _META).read_bytes())["segments"]
        for segment in segments:
            name = segment["segment_id"].replace("-", "")
            deletes = segment["deletes"]
            files = [folder / f"{name}.{part}" for part in _PARTS]
            if deletes:
                files.append(folder / f"{name}.{deletes['opstamp']}.del")
            broken = next((file.name for file in files if not _is_whole(file)), None)
            if broken is not None:
                return f"{broken} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_META} is not what tantivy writes"
    return None


def clear(folder: Path) -> None:
    """Leave an empty folder. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _is_whole(file: Path) -> bool:
    """Compare a file with its footer: body, JSON with the body's CRC-32, length of the JSON and a magic number."""
    size = file.stat().st_size
    if size < _TAIL_BYTES:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        tail = content[size - _TAIL_BYTES :]
        length, magic = int.from_bytes(tail[:4], "little"), int.from_bytes(tail[4:], "little")
        body = size - _TAIL_BYTES - length
        if magic != _MAGIC or body < 0:
            return False
        try:
            expected = json.loads(content[body : size - _TAIL_BYTES])["crc"]
        except (ValueError, KeyError, TypeError):
            return False
        with memoryview(content) as view, view[:body] as part:
            return bool(zlib.crc32(part) == expected)
