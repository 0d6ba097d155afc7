"""Collections in formats of their own become documents, queries and judgements."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from engine.errors import ConfigError
from loadtest.retrieval.collection_files import Document
from loadtest.retrieval.judged_sets import read_dialogues, read_faq, read_site


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_query_of_an_faq_is_to_find_the_answers_and_not_the_question(tmp_path):
    corpus = write(tmp_path / "c.jsonl", {"id": "f", "question": "How to strike out?", "answers": ["Tildes.", "<del>"]})
    queries = write(tmp_path / "q.jsonl", {"id": "q", "text": "strike out text", "relevant": "f"})
    collection = read_faq(corpus, queries)
    assert collection.documents == {"f": Document("", "Tildes.\n\n<del>")}
    assert (collection.queries, collection.qrels) == ({"q": "strike out text"}, {"q": {"f": 1}})


def test_the_last_question_of_a_dialogue_is_searched_with_words_of_earlier_turns(tmp_path):
    rows = [
        {
            "conversation_id": "one",
            "answerability": "ANSWERABLE",
            "turns": [
                {"speaker": "user", "text": "How do I resize a volume?"},
                {"speaker": "agent", "text": "By command."},
                {"speaker": "user", "text": "Is it safe?"},
            ],
            "contexts": [{"document_id": "a", "text": "volumes grow"}],
        },
        {"conversation_id": "two", "answerability": "UNANSWERABLE", "turns": [], "contexts": []},
    ]
    file = tmp_path / "d.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in [{"_provenance": {}}, *rows]).encode()))
    collection = read_dialogues(file)
    assert collection.documents == {"0": Document("", "volumes grow")}
    assert collection.queries == {"0": "Is it safe? resize volume"}
    assert collection.qrels == {"0": {"0": 1}}


def test_a_question_about_a_site_is_to_find_the_first_of_its_pages(tmp_path):
    archive = tmp_path / "site.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, body in (("top/docs/a/one.md", b"# One"), ("top/docs/two.html", b"<p>Two"), ("top/LICENSE", b"free")):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    questions = write(tmp_path / "q.jsonl", {"id": "q", "question": "Which?", "pages": ["a/one.md", "two.html"]})
    collection = read_site(archive, questions)
    assert collection.documents == {
        "a/one.md": Document("", "# One", "text/markdown"),
        "two.html": Document("", "<p>Two", "text/html"),
    }
    assert (collection.queries, collection.qrels) == ({"q": "Which?"}, {"q": {"a/one.md": 1}})


@pytest.mark.parametrize(
    ("reader", "row", "message"),
    [
        (read_faq, {"id": "f", "answers": "one"}, r"first:1: has no list of texts under \"answers\""),
        (read_site, {"id": "q", "question": "?", "pages": []}, r"first: cannot be read"),
        (read_dialogues, None, r"absent: cannot be read \(no such file\)"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, reader, row, message):
    files = [tmp_path / "absent"] if row is None else [write(tmp_path / "first", row), tmp_path / "absent"]
    with pytest.raises(ConfigError, match=message):
        reader(*files)


def test_a_question_without_pages_is_named_with_its_line(tmp_path):
    archive = tmp_path / "site.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("top/docs/one.md"))
    with pytest.raises(ConfigError, match=r'q\.jsonl:1: has no list of paths under "pages"'):
        read_site(archive, write(tmp_path / "q.jsonl", {"id": "q", "question": "Which?", "pages": []}))
