"""Judged collections that come in formats of their own: FAQs, conversations, pages with questions about them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from engine.cli.judged_files import Qrels, objects, text_id, text_of
from engine.errors import ConfigError
from engine.retrieval.followups import standalone_query
from loadtest.followup_quality import read_conversations
from loadtest.retrieval.collection_files import Collection, Document, checked
from loadtest.retrieval.corpus import read_pages


def read_faq(corpus: Path, queries: Path) -> Collection:
    """A query is to find the answers to its question, which the documents leave out: its words would say too much.

    Args:
        corpus: JSONL of {"id", "answers": [text]}.
        queries: JSONL of {"id", "text", "relevant": id}.
    Raises: ConfigError naming file and line.
    """
    documents: dict[str, Document] = {}
    for where, row in objects(corpus):
        answers = row.get("answers")
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ConfigError(f'{where}: has no list of texts under "answers".')
        documents[text_id(row, where, "id")] = Document("", "\n\n".join(answers).strip())
    asked: dict[str, str] = {}
    qrels: Qrels = {}
    for where, row in objects(queries):
        query = text_id(row, where, "id")
        asked[query] = text_of(row, where)
        qrels[query] = {text_id(row, where, "relevant"): 1}
    return checked(documents, asked, qrels, str(queries))


def read_dialogues(file: Path) -> Collection:
    """The last question of each conversation of MTRAG-UN, searched as by `retriever.followups: rules`.

    The documents are the passages of all conversations. Raises: ConfigError when there is no such file.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: cannot be read (no such file). Name a readable file.")
    conversations, corpus = read_conversations(file)
    return checked(
        {str(row): Document("", text.strip()) for row, text in enumerate(corpus)},
        {str(number): standalone_query(one.messages) for number, one in enumerate(conversations)},
        {str(number): {str(row): 1 for row in one.relevant} for number, one in enumerate(conversations)},
        str(file),
    )


def read_site(archive: Path, questions: Path) -> Collection:
    """Each question is to find its page: the first under `pages`, counted from the archive's folder `docs`.

    Args:
        archive: a tar file of Markdown and HTML pages, as `TOP/docs/PATH`.
        questions: JSONL of {"id", "question", "pages": [PATH]}.
    Raises: ConfigError naming file and line.
    """
    if not archive.is_file():
        raise ConfigError(f"{archive}: cannot be read (no such file). Name a readable file.")
    documents = {
        PurePosixPath(*PurePosixPath(item.id).parts[2:]).as_posix(): Document(
            "", item.body.decode(errors="replace"), item.content_type
        )
        for item in read_pages(archive).items
    }
    asked: dict[str, str] = {}
    qrels: Qrels = {}
    for where, row in objects(questions):
        pages = row.get("pages")
        if not isinstance(pages, list) or not pages or not isinstance(pages[0], str):
            raise ConfigError(f'{where}: has no list of paths under "pages".')
        query = text_id(row, where, "id")
        asked[query] = text_of(row, where, "question")
        qrels[query] = {pages[0]: 1}
    return checked(documents, asked, qrels, str(questions))
