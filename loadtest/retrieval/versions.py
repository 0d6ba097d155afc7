"""Two versions of the same pages on disk: real ones where they are at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from loadtest.retrieval.corpus import FLYIO, endless_copies, read_pages

# A made version moves every tenth page and changes every third of the others, as the real one does.
_MOVED, _CHANGED = 10, 3

Version = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Folders:
    """Where both versions lie, and what they are."""

    old: Path
    new: Path
    description: str


def write_versions(folder: Path, num_pages: int | None, *, archive: Path = FLYIO) -> Folders:
    """Write two versions below `folder`, about `num_pages` pages of each (None: all).

    The Fly.io documentation, v1 and v2, where both archives are at hand; else the Markdown pages of docs/ and a made
    version of them.
    """
    newer = archive.with_name(archive.name.replace("_v1", "_v2"))
    if archive.is_file() and newer.is_file():
        origin = f"{archive.name} and {newer.name}"
        old, new = _pages(archive), _pages(newer)
    else:
        pages = read_pages(archive)
        origin = f"{pages.origin} and a made second version"
        copies = {
            copy.id.partition("/")[2]: copy.body for copy in islice(endless_copies(pages.items), len(pages.items))
        }
        old = {item.id: item.body for item in pages.items}
        new = _made(old, copies)
    if num_pages is not None:
        wanted = set(sorted(old.keys() | new.keys(), key=_digest)[:num_pages])
        old, new = ({name: body for name, body in one.items() if name in wanted} for one in (old, new))
    for name, version in (("old", old), ("new", new)):
        _write(folder / name, version)
    changed = sum(new[name] != old[name] for name in old.keys() & new.keys())
    counts = f"{len(new.keys() - old.keys())} added, {changed} changed, {len(old.keys() - new.keys())} deleted"
    return Folders(folder / "old", folder / "new", f"{len(old)} pages of {origin}: {counts}")


def _pages(archive: Path) -> dict[str, bytes]:
    """Bodies by path without the archive's own folder, which names the version."""
    return {
        PurePosixPath(item.id).relative_to(PurePosixPath(item.id).parts[0]).as_posix(): item.body
        for item in read_pages(archive).items
    }


def _made(old: Version, copies: Version) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for number, (name, body) in enumerate(old.items()):
        if number % _MOVED == 0:
            made[f"moved/{name}"] = body
        else:
            made[name] = copies[name] if number % _CHANGED == 0 else body
    return made


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _write(folder: Path, pages: Version) -> None:
    for name, body in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
