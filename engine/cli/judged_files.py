"""Judged queries from files.

    queries      JSONL of {"id" or "_id", "text"}
    judgements   JSONL of {"query_id", "doc_id", "relevance"}, TREC's `query iteration document relevance`,
                 or BEIR's tab-separated `query-id corpus-id score`

A file may be compressed (.gz). A first line {"_provenance": ...} is passed over.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import ConfigError

Qrels = dict[str, dict[str, int]]


def read_queries(file: Path) -> dict[str, str]:
    """Text of each query by id. Raises: ConfigError naming file and line."""
    queries: dict[str, str] = {}
    for where, row in objects(file):
        name = text_id(row, where, "id", "_id")
        if name in queries:
            raise ConfigError(f"{where}: id {name!r} was used by a line before. Ids must be unique.")
        queries[name] = text_of(row, where)
    return queries


def read_qrels(file: Path) -> Qrels:
    """Relevance by query and document, as ids. Raises: ConfigError naming file and line."""
    qrels: Qrels = {}
    for where, line in _lines(file):
        judgement = _judgement(line, where)
        if judgement is None:
            continue
        query, document, relevance = judgement
        known = qrels.setdefault(query, {})
        if known.get(document, relevance) != relevance:
            raise ConfigError(
                f"{where}: document {document!r} was judged {known[document]} for query {query!r} before, "
                f"and {relevance} here. Keep one of the two lines."
            )
        known[document] = relevance
    return qrels


def _judgement(line: str, where: str) -> tuple[str, str, int] | None:
    """Query, document and relevance of one line; None for a header."""
    if line.lstrip().startswith("{"):
        row = _object(line, where)
        if "_provenance" in row:
            return None
        return text_id(row, where, "query_id"), text_id(row, where, "doc_id"), _relevance(row.get("relevance"), where)
    fields = line.split("\t") if line.count("\t") == 2 else line.split()
    if len(fields) == 3 and fields[0].strip() == "query-id":
        return None
    if len(fields) == 3:
        return fields[0].strip(), fields[1].strip(), _relevance(fields[2], where)
    if len(fields) == 4:
        return fields[0], fields[2], _relevance(fields[3], where)
    raise ConfigError(
        f"{where}: has {len(fields)} fields. A judgement is a JSON object, 4 fields (TREC) or 3 fields (BEIR)."
    )


def _relevance(value: Any, where: str) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: relevance {value!r} is no whole number.") from None


def text_id(row: dict[str, Any], where: str, *names: str) -> str:
    """The id under the first of `names` that has one. Raises: ConfigError."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            return str(value)
    raise ConfigError(f"{where}: has no text under {' or '.join(map(repr, names))}.")


def text_of(row: dict[str, Any], where: str, name: str = "text") -> str:
    """The text under `name`, stripped; a title may be absent. Raises: ConfigError."""
    value = row.get(name, "" if name == "title" else None)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: has no text under {name!r}.")
    return value.strip()


def objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a JSONL file with `file:number`. Raises: ConfigError."""
    for where, line in _lines(file):
        row = _object(line, where)
        if "_provenance" not in row:
            yield where, row


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: is not JSON ({error}). Each line is one object.") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: is {type(row).__name__}, not an object. Each line is one object.")
    return row


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not blank, with `file:number`."""
    number = 0
    opener: Any = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as lines:
            for number, raw in enumerate(lines, 1):
                # Decoded line by line, so that an error is that of its own line.
                line = raw.decode("utf-8-sig")
                if line.strip():
                    yield f"{file}:{number}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}:{number}: is not UTF-8 text (byte {error.start} of the line).") from None
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{file}:{number + 1}: cannot be read ({why}). Name a readable file.") from None
