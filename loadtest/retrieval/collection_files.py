"""Judged collections from files: documents, queries, and how relevant which document is to which query.

    corpus, queries   JSONL of {"id" or "_id", "text", "title"?}
    judgements        JSONL of {"query_id", "doc_id", "relevance"}, TREC's `query iteration document relevance`,
                      or BEIR's tab-separated `query-id corpus-id score`

A file may be compressed (.gz). A first line {"_provenance": ...} is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.cli.judged_files import Qrels, objects, read_qrels, text_id, text_of
from engine.errors import ConfigError

_MANY = 5


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `title` is empty where it has none."""

    title: str
    text: str
    content_type: str = "text/plain"

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
    for where, row in objects(corpus):
        _add(
            documents,
            text_id(row, where, "id", "_id"),
            Document(text_of(row, where, "title"), text_of(row, where)),
            where,
        )
    asked: dict[str, str] = {}
    for where, row in objects(queries):
        _add(asked, text_id(row, where, "id", "_id"), text_of(row, where), where)
    return checked(documents, asked, read_qrels(qrels), str(qrels))


def read_squad(file: Path) -> Collection:
    """Each question of a SQuAD file is a query, and its paragraph the one relevant document.

    `file`: JSONL of {"id", "context", "questions": [{"id", "question", "unanswerable"?}]}.
    Raises: ConfigError naming file and line.
    """
    documents: dict[str, Document] = {}
    asked: dict[str, str] = {}
    qrels: Qrels = {}
    for where, row in objects(file):
        paragraph = text_id(row, where, "id")
        _add(documents, paragraph, Document("", text_of(row, where, "context")), where)
        questions = row.get("questions")
        if not isinstance(questions, list) or not all(isinstance(question, dict) for question in questions):
            raise ConfigError(f'{where}: has no list of objects under "questions".')
        for question in questions:
            if not question.get("unanswerable"):
                query = text_id(question, where, "id")
                _add(asked, query, text_of(question, where, "question"), where)
                qrels[query] = {paragraph: 1}
    return checked(documents, asked, qrels, str(file))


def checked(documents: dict[str, Document], queries: dict[str, str], qrels: Qrels, where: str) -> Collection:
    """Leave out what cannot be searched or scored, and say so. Raises: ConfigError when nothing is left."""
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


def _add(into: dict[str, Any], name: str, value: Any, where: str) -> None:
    if name in into:
        raise ConfigError(f"{where}: id {name!r} was used by a line before. Ids must be unique.")
    into[name] = value


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return f"{len(names)} ({', '.join(names[:_MANY])}{more})"
