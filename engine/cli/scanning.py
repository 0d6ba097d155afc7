"""Documents on disk, as `switchyard ingest` finds them, and the count of what becomes of each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.errors import SwitchyardError
from engine.retrieval.parsing.formats import BINARY_TYPES, CONTENT_TYPES

_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class LocalDocument:
    """A document found on disk; `name` is its id without the source. What is no text (`is_binary`) has none here: the
    file is read again when its turn comes."""

    name: str
    origin: str
    content_type: str
    body_hash: str
    text: str = ""
    is_binary: bool = False
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """What happened, by status, with the reasons of failures."""

    counts: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    embedded: int = 0
    version: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)

    def fail(self, name: str, why: str) -> None:
        """Count one document that could not be stored."""
        self.counts["failed"] += 1
        self.failures.append({"id": name, "error": why})


def scan(paths: Sequence[Path], tally: Tally, console: Console) -> Iterator[LocalDocument]:
    """Every document below `paths`; those that cannot be read are counted as failures.

    Raises: SwitchyardError for a path that does not exist, or a file of a type that is not supported.
    """
    skipped: Counter[str] = Counter()
    for path in paths:
        if not path.exists():
            raise SwitchyardError(f"{path} does not exist.")
        for file in _files(path):
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            suffix = file.suffix.lower()
            content_type = CONTENT_TYPES.get(suffix)
            if content_type is None:
                if file == path:
                    raise SwitchyardError(
                        f"{path}: type {suffix or 'none'} is not supported; "
                        f"supported: {', '.join(sorted(CONTENT_TYPES))}."
                    )
                skipped[suffix or "no suffix"] += 1
                continue
            try:
                with file.open("rb") as opened:
                    body_hash = hashlib.file_digest(opened, "sha256").hexdigest()
                if content_type in BINARY_TYPES:
                    yield LocalDocument(name, str(file), content_type, body_hash, is_binary=True)
                    continue
                text = file.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                tally.fail(name, f"is not UTF-8 text (byte {error.start}); convert it, or leave it out")
                continue
            except OSError as error:
                tally.fail(name, f"cannot be read ({error.strerror})")
                continue
            if suffix in _JSON_LINES and _holds_documents(text):
                yield from _documents_of_lines(name, text, tally)
            else:
                yield LocalDocument(name, str(file), content_type, body_hash, text)
    if skipped:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common())
        console.print(f"[dim]skipped files of other types: {kinds}[/dim]")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden:
            yield file


def _holds_documents(text: str) -> bool:
    """Whether any line is a document of its own; otherwise the lines are rows of one."""
    for line in _lines(text):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.keys() >= {"id", "text"}:
            return True
    return False


def _lines(text: str) -> list[str]:
    # str.splitlines would also cut at characters that JSON allows inside of a string.
    return text.removeprefix("\ufeff").split("\n")


def _documents_of_lines(name: str, text: str, tally: Tally) -> Iterator[LocalDocument]:
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            content = str(row["text"])
            yield LocalDocument(
                str(row["id"]),
                f"{name}:{number}",
                "text/markdown",
                hashlib.sha256(content.encode()).hexdigest(),
                content,
                title=row.get("title"),
                metadata=row.get("metadata") or {},
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            tally.fail(f"{name}:{number}", f'is not a document ({why}); expected {{"id": ..., "text": ...}}')
