"""Judged collections from files: documents, queries, and how relevant which document is to which query.

    corpus, queries   JSONL of {"id" or "_id", "text", "title"?}
    judgements        JSONL of {"query_id", "doc_id", "relevance"}, TREC's `query iteration document relevance`,
                      or BEIR's tab-separated `query-id corpus-id score`

A file may be compressed (.gz). A first line {"_provenance": ...} is passed over.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ConfigError

Qrels = dict[str, dict[str, int]]
_MANY = 5


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `title` is empty where it has none."""

    title: str
    text: str

    def whole(self) -> str:
        """Title and text, joined as sentence-transformers' evaluators do."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class Collection:
    """Documents and queries by id, relevance by query and document, and what was left out, in words."""

    documents: dict[str, Document]
    queries: dict[str, str]
    qrels: Qrels
    skipped: dict[str, str] = field(default_factory=dict)


def read_collection(corpus: Path, queries: Path, qrels: Path) -> Collection:
    """Read the three files. Raises: ConfigError naming file and line."""
    documents: dict[str, Document] = {}
    for where, row in _objects(corpus):
        _add(documents, _id(row, where, "id", "_id"), Document(_text(row, where, "title"), _text(row, where)), where)
    asked: dict[str, str] = {}
    for where, row in _objects(queries):
        _add(asked, _id(row, where, "id", "_id"), _text(row, where), where)
    return _checked(documents, asked, _read_qrels(qrels), str(qrels))


def read_squad(file: Path) -> Collection:
    """Each question of a SQuAD file is a query, and its paragraph the one relevant document.

    `file`: JSONL of {"id", "context", "questions": [{"id", "question", "unanswerable"?}]}.
    Raises: ConfigError naming file and line.
    """
    documents: dict[str, Document] = {}
    asked: dict[str, str] = {}
    qrels: Qrels = {}
    for where, row in _objects(file):
        paragraph = _id(row, where, "id")
        _add(documents, paragraph, Document("", _text(row, where, "context")), where)
        questions = row.get("questions")
        if not isinstance(questions, list) or not all(isinstance(question, dict) for question in questions):
            raise ConfigError(f'{where}: has no list of objects under "questions".')
        for question in questions:
            if not question.get("unanswerable"):
                query = _id(question, where, "id")
                _add(asked, query, _text(question, where, "question"), where)
                qrels[query] = {paragraph: 1}
    return _checked(documents, asked, qrels, str(file))


def _checked(documents: dict[str, Document], queries: dict[str, str], qrels: Qrels, where: str) -> Collection:
    """Leave out what cannot be searched or scored, and say so."""
    skipped = {}
    empty = [name for name, document in documents.items() if not document.whole()]
    if empty:
        skipped["documents without text"] = _listed(empty)
    judged = {query for query in queries if any(relevance > 0 for relevance in qrels.get(query, {}).values())}
    unjudged = [query for query in queries if query not in judged]
    if unjudged:
        skipped["queries without a relevant document"] = _listed(unjudged)
    unasked = [query for query in qrels if query not in queries]
    if unasked:
        skipped["judgements of queries that are not in the file"] = _listed(unasked)
    unknown = [name for query in qrels for name in qrels[query] if name not in documents]
    if unknown:
        skipped["judged documents that are not in the corpus, which count as not found"] = _listed(unknown)
    if not judged or len(empty) == len(documents):
        raise ConfigError(
            f"{where}: no query has a relevant document ({len(queries)} queries, {len(qrels)} of them judged, "
            f"{len(documents)} documents). The ids of the files must agree."
        )
    kept = {name: document for name, document in documents.items() if document.whole()}
    asked = {query: text for query, text in queries.items() if query in judged}
    return Collection(kept, asked, {query: qrels[query] for query in asked}, skipped)


def _read_qrels(file: Path) -> Qrels:
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
        return _id(row, where, "query_id"), _id(row, where, "doc_id"), _relevance(row.get("relevance"), where)
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


def _id(row: dict[str, Any], where: str, *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            return str(value)
    raise ConfigError(f"{where}: has no text under {' or '.join(map(repr, names))}.")


def _text(row: dict[str, Any], where: str, name: str = "text") -> str:
    value = row.get(name, "" if name == "title" else None)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: has no text under {name!r}.")
    return value.strip()


def _add(into: dict[str, Any], name: str, value: Any, where: str) -> None:
    if name in into:
        raise ConfigError(f"{where}: id {name!r} was used by a line before. Ids must be unique.")
    into[name] = value


def _objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return f"{len(names)} ({', '.join(names[:_MANY])}{more})"
